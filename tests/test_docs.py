"""The documentation is true: links, commands, option names, programs, and every figure taken from a record."""

import json
import re
import runpy
import shlex
from collections import Counter
from pathlib import Path

import pytest

from babyjax.compare import CompareConfig
from babyjax.evaluate import EvaluateConfig
from babyjax.options import all_arguments, load_config, read_options
from babyjax.recipes import PRESETS, expand
from babyjax.sample import SampleConfig
from babyjax.sweep import combinations, config_of
from docs.generate import pages
from experiments.seed_comparison.claims import CLAIMS, Verdict

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.zh-CN.md")
NAMES = (
    *READMES,
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "checkpoints/README.md",
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def record(experiment: str):
    return json.loads(text_of(f"experiments/{experiment}/results.json"))


def numbers(text: str) -> list[str]:
    """The figures in a text that have a decimal point or a thousands separator."""
    return re.findall(r"\d+(?:,\d{3})+|\d+\.\d+(?:e-\d+)?", text)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_generated_pages_are_current(path):
    assert path.read_text(encoding="utf-8") == pages()[path], "run python -m docs.generate"


def test_every_preset_and_option_is_in_the_tables():
    text = text_of("docs/options.md")
    for group, presets in PRESETS.items():
        for name in presets:
            kind = expand(group, name)[0]
            assert f"| `{name}` |" in text
            assert all(f"| `{kind.key(option)}=`" in text for option in kind.model_fields)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    for link in re.findall(r"\]\(([^)]+)\)", text_of(name)):
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def commands() -> list[tuple[str, list[str]]]:
    """Every babyjax command in a shell block or in backticks, with its arguments."""
    found = set()
    for name in NAMES:
        text = text_of(name)
        lines = "".join(blocks(text, "sh")).splitlines() + re.findall(r"`([^`\n]+)`", text)
        for line in lines:
            for part in line.split("&&"):
                words = shlex.split(part, comments=True) if part.count('"') % 2 == part.count("'") % 2 == 0 else []
                words = [word for word in words if "=" not in word or not word.isupper()]
                for index, word in enumerate(words[:-1]):
                    if word.endswith("babyjax") and words[index + 1] in (
                        "train",
                        "sweep",
                        "evaluate",
                        "compare",
                        "sample",
                    ):
                        found.add((words[index + 1], *words[index + 2 :]))
    return [(command, arguments) for command, *arguments in sorted(found)]


def test_commands_have_options_that_exist():
    assert len(commands()) > 20
    for command, arguments in commands():
        arguments = [each for each in arguments if each != "--help" and not each.startswith("config=")]
        match command:
            case "train":
                load_config(arguments)
            case "sweep":
                given = all_arguments(arguments)
                for chosen in combinations(given) if given else ():
                    config_of(given, chosen)
            case "compare":
                read_options(CompareConfig, [argument for argument in arguments if "=" in argument])
            case "evaluate":
                read_options(EvaluateConfig, arguments)
            case "sample":
                read_options(SampleConfig, arguments)


@pytest.mark.parametrize("name", NAMES)
def test_options_that_are_mentioned_exist(name):
    known = set(re.findall(r"^\| `([\w.]+)=`", text_of("docs/options.md"), re.MULTILINE))
    mentioned = set(
        re.findall(r"\b((?:model|data|trainer|optimizer|train|checkpoint|distributed)\.[a-z_0-9]+)=", text_of(name))
    )
    assert mentioned <= known


def test_files_in_the_architecture_exist():
    text = text_of("ARCHITECTURE.md")
    paths = re.findall(r"`((?:[\w-]+/)*[\w-]+(?:\.py|/))`", text)
    assert len(paths) > 20
    seed = ["babygpt_v1.py", "simplebigrammodel_torch.py"]
    assert [path for path in paths if not any((ROOT / top / path).exists() for top in (".", "babyjax"))] == seed
    for path, names in re.findall(r"`([\w/]+\.py)`: ((?:`\w+`(?:, )?)+)", text):
        source = text_of(f"babyjax/{path}")
        assert all(re.search(rf"\b{name}\b", source) for name in re.findall(r"\w+", names)), path
    measured = re.findall(r"`(\w+)\.(\w+)`", text[text.index("| section") :])
    measured = [pair for pair in measured if pair[0].islower() and pair[1] != "py"]
    assert len(measured) >= 8
    for module, name in measured:
        assert f"def {name}(" in text_of(f"experiments/seed_comparison/{module}.py")


def test_every_module_is_in_the_architecture_and_imports_point_one_way():
    levels = [{"runs", "sinks"}, {"training"}, {"counts", "evaluation", "generation", "interop"}, {"models", "data"}]
    text = text_of("ARCHITECTURE.md")
    for path in (ROOT / "babyjax").glob("**/*.py"):
        names = {f"`{path.stem}`", f"`{path.name}`"}
        assert path.name == "__init__.py" or any(name in text for name in names), path
        folder = path.parent.name
        imported = set(re.findall(r"^from babyjax\.(\w+)\.", path.read_text(encoding="utf-8"), re.MULTILINE))
        for above in levels:
            if folder in above:
                break
            assert not imported & above or folder == "babyjax", path
        assert {folder, *imported} & {"models", "data"} != {"models", "data"} or folder not in ("models", "data"), path


@pytest.mark.slow
def test_the_library_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text("\n".join(blocks(text_of("docs/library.md"), "python")), encoding="utf-8")
    runpy.run_path(str(tmp_path / "program.py"))


@pytest.mark.parametrize("name", READMES)
def test_readmes_fit_a_page(name):
    assert len(text_of(name).splitlines()) <= 120


def test_figures_in_the_readmes_are_on_record():
    names = {
        f"experiments/{name}/results.md"
        for name in ("speed", "reference", "ngram", "recipes", "five_minutes", "speedrun")
    }
    recorded = Counter(numbers("".join(text_of(name) for name in names if (ROOT / name).exists())))
    shown = []
    for name in READMES:
        rows = re.findall(r"^\| [^|]+ \| (.*) \|$", text_of(name), re.MULTILINE)
        shown.append([figure for row in rows for figure in numbers(row)])
        assert len(shown[-1]) > 15
        assert [figure for figure in shown[-1] if figure not in recorded] == [], name
    assert shown[0] == shown[1]


def test_what_is_said_of_the_ladder_is_on_record():
    reference, text = record("reference")["tinyshakespeare"], text_of("docs/ladder.md")
    names = [name for name in reference["rungs"] if name.startswith("babygpt")][:10]
    verdicts = {name: reference["rungs"][name] for name in names}
    text = text[: text.index("`gpt-tiny-2019`, with 19 times")]
    listed = re.findall(r"^- (Better|Worse|Not distinguishable): ((?:.|\n(?!-))*)", text, re.MULTILINE)
    said = {figure: kind for kind, part in listed for figure in re.findall(r"[-+]\d\.\d{4}\s±\s\d\.\d{4}", part)}
    kinds = {"B": "Better", "A": "Worse", None: "Not distinguishable"}
    assert said == {
        f"{row['difference']:+.4f} ± {row['half_width']:.4f}": kinds[row["better"]] for row in verdicts.values()
    }
    means = {name: row["mean"] for name, row in verdicts.items()}
    for nats in (means["babygpt"], min(means.values()), *(reference["ngrams"][order] for order in "34")):
        assert f"{nats:.4f}" in text
    assert min(means, key=means.__getitem__) == "babygpt-v9-layernorm"
    assert all(
        f"{means[name]:.4f}" in text_of(page) for name in ("babygpt", "babygpt-v9-layernorm") for page in READMES
    )


def test_what_is_said_of_larger_rungs_is_on_record():
    rungs, text = record("reference")["tinyshakespeare"]["rungs"], text_of("docs/ladder.md")
    text = text[text.index("`gpt-tiny-2019`, with 19 times") :]
    names = list(rungs)
    larger = {name: rungs[name] for name in names[names.index("gpt-tiny-2019") :]}
    tiny, last = larger["gpt-tiny-2019"], larger["gpt-tiny"]
    assert tiny["parameters"] / rungs["babygpt-v9-layernorm"]["parameters"] == pytest.approx(19, abs=0.5)
    assert f"as many characters: {tiny['mean']:.4f}." in text
    better, same = text[text.index("- Better:") :].split("- Not distinguishable:")
    same = same[: same.index("\n\n")]
    for name, row in larger.items():
        if name.startswith("babygpt"):
            said = f"({row['difference']:+.4f} ± {row['half_width']:.4f})"
            assert name.split("-")[1] in (better if row["better"] == "B" else same)
            assert said in (better if row["better"] == "B" else same)
    grouped, normed = larger["babygpt-v16-gqa"], larger["babygpt-v17-qknorm"]
    assert 1 - grouped["parameters"] / larger["babygpt-v15-swiglu"]["parameters"] == pytest.approx(0.08, abs=0.005)
    assert f"v17 reaches {normed['mean']:.4f}." in text
    assert last["parameters"] / normed["parameters"] == pytest.approx(0.25, abs=0.01)
    assert (last["below"], last["better"]) == ("babygpt-v17-qknorm", "A")
    assert f"Muon: {last['mean']:.4f}, worse than v17 by {last['difference']:.4f} ± {last['half_width']:.4f}" in text
    largest = [name for name, row in larger.items() if float(row["rate"]) == max(map(float, row["rates"]))]
    assert set(larger) - set(largest) == {"babygpt-v16-gqa", "gpt-tiny"}


def test_what_is_said_of_poems_is_on_record():
    poems, text = record("reference")["songci"], text_of("docs/ladder.md")
    text = " ".join(text[text.index("On Song dynasty poems") :].split("\n\n")[0].split())
    first, ninth = (poems["rungs"][name] for name in ("babygpt", "babygpt-v9-layernorm"))
    best = min(poems["ngrams"], key=poems["ngrams"].__getitem__)
    assert (first["below"], first["better"]) == ("bigram", "B")
    assert f"v1 reaches {first['mean']:.4f}, better than the add-one bigram by {-first['difference']:.4f} ± " in text
    assert f"± {first['half_width']:.4f}, and v9 layer norm {ninth['mean']:.4f}, but" in text
    assert (
        f"2-gram {poems['ngrams']['2']:.4f} and the best n-gram, of order {best}, {poems['ngrams'][best]:.4f}" in text
    )
    assert poems["ngrams"][best] < poems["ngrams"]["2"] < ninth["mean"] < first["mean"]


def test_what_is_said_of_compiled_steps_is_on_record():
    steps = {
        (target, *step["options"], step["mesh"]): step
        for target, found in record("ahead_of_time").items()
        for step in found["steps"]
    }
    xl = ("tpu", "model=gpt2-xl", "train.batch_size=32", "model.remat=true")
    assert "error" in steps[*xl, "data"]
    for page in ("docs/ladder.md", "docs/devices.md"):
        assert f"{steps[*xl, 'fsdp']['bytes'] / 2**30:.2f} GiB" in text_of(page)
    page = text_of("docs/devices.md")
    small = ("h100", "model=gpt2", "model.dtype=bfloat16", "train.batch_size=16")
    fused, plain = (steps[*small, f"model.attention={attention}", "data"] for attention in ("cudnn", "xla"))
    assert fused["attention"] == {"forward": 12, "backward": 12}
    assert f"takes {fused['temporary_bytes'] / 2**30:.2f} GiB of an H100" in page
    assert f"without it {plain['temporary_bytes'] / 2**30:.2f} GiB" in page
    assert not any(".cas." in name for target in record("ahead_of_time").values() for name in target["atomics"])


def test_what_is_said_of_processes_is_on_record():
    found, page = record("processes"), text_of("docs/devices.md")
    assert max(row["furthest"] for row in found["rows"]) < 1e-5
    assert f"is {max(row['furthest'] for row in found['rows']):.1e}, for one device" in page
    assert found["same_bytes"]
    state = found["state"]
    assert f"A network of {state['parameters'] / 1e6:.1f}M parameters" in page
    assert f"takes {state['data'] / 2**20:.0f} MiB of" in page
    assert f"and {state['fsdp'] / 2**20:.0f} MiB with `fsdp`" in page


def test_what_is_said_of_growth_is_on_record():
    pairs = record("growth")["pairs"]

    def total(pair, initialization, share):
        return sum(run[initialization][int(share * len(run[initialization])) - 1] for run in pair["runs"])

    assert all(total(pair, "grown", 1) < total(pair, "random", 0.5) for pair in pairs)
    assert [total(pair, "random", 1) < total(pair, "grown", 1) for pair in pairs] == [False] + [True] * 5
    behind = [sum(run["grown"][-1] > run["random"][len(run["grown"]) - 1] for run in pair["runs"]) for pair in pairs]
    assert behind == [0, 0, 0, 0, 0, 2]


def test_what_is_said_of_ngrams_is_on_record():
    results, text = record("ngram"), text_of("docs/ngrams.md")
    said = re.findall(r"\d\.\d{4}", text[text.index("## How far counting gets") :])
    recorded = text_of("experiments/ngram/results.md")
    assert len(said) >= 10
    assert [figure for figure in said if figure not in recorded] == []
    assert results["costs"]["count"] < 0.6
    published = results["mixtures"][1]
    assert max(published["static"]) < min(published["static_ngram"], *results["networks"])


def test_what_is_said_of_recipes_is_on_record():
    text, variants = text_of("docs/negative-results.md"), record("recipes")["variants"]
    said = re.findall(r"\d\.\d{4}", text)
    losses = {f"{run.get('averaged', run['val']):.4f}": name for name, each in variants.items() for run in each["runs"]}
    assert len(said) >= 15
    assert [figure for figure in said if figure not in losses] == []
    best = min(run["val"] for run in variants["qwen-tiny by Muon"]["runs"])
    tried = [name for name in variants if name not in ("qwen-tiny by Muon", "gpt-tiny", "gpt-small")]
    assert all(run.get("averaged", run["val"]) > best for name in tried[:11] for run in variants[name]["runs"])


def test_what_is_said_of_the_frontier_is_on_record():
    results = record("rank_frontier")
    gaps = {row["n_embd"]: row["gap"] for row in results["rows"]}
    said = re.findall(r"(\d+\.?\d*(?:e-\d+)?)\s+nats \(n_embd (\d+)\)", text_of("docs/counts.md"))
    assert len(said) >= 3
    assert all(float(gap) == float(f"{gaps[int(width)]:.2g}") for gap, width in said)
    assert min(row["adamw"]["train"] for row in results["rows"]) - results["entropy"] >= 0.028
    assert f"{gaps[32]:.1e}" == "3.8e-10"


def test_what_is_said_of_the_seed_is_on_record():
    text, names = text_of("docs/seed.md"), ("tinyshakespeare", "songci")
    reports = [text_of(f"experiments/seed_comparison/{name}/report.md") for name in names]
    said = re.findall(r"^\| (?:the claim|it) (.*?) +\| +(\d+) +\| +(\d+) +\|$", text, re.MULTILINE)
    assert [verdict for verdict, *_ in said] == [*map(str, Verdict)]
    for verdict, *tallies in said:
        assert [int(tally) for tally in tallies] == [report.count(f"**{verdict}**") for report in reports]
    assert f"{len(CLAIMS)} claims" in text
    recorded = numbers("".join(reports)) + numbers(text_of("experiments/reference/results.md"))
    assert [figure for figure in numbers(text[text.index("What the") :]) if figure not in recorded] == []

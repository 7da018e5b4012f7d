"""The report: every claim measured, every verdict from its figure, and a page that opens anywhere."""

import copy
import html
import json
import math
import re
import shutil
from collections.abc import Iterator
from functools import reduce
from operator import getitem
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ladder import mostly_slow
from markdown_it import MarkdownIt

from babyjax import load_config, load_corpus
from babyjax.errors import ConfigError, DataError, DivergenceError
from experiments.seed_comparison import __main__ as command
from experiments.seed_comparison import scaling, study
from experiments.seed_comparison.baselines import libraries
from experiments.seed_comparison.claims import CLAIMS, FAILS, HOLDS, LIMIT, SECTIONS, Verdict, in_words
from experiments.seed_comparison.pictures import PICTURES, visible
from experiments.seed_comparison.report import markdown, page, plain

pytest.importorskip("matplotlib")

LITTLE = study.Effort(
    factors=(0.5, 1.0),
    size=0.25,
    rounds=1,
    widths=(2,),
    merged_vocab=8,
    draws=2000,
    rung="babygpt-v3-attention",
    orders=(2, 3),
    sample=20,
    tolerance=1e-2,
    hardware=256,
)
FOLDER = Path(command.__file__).parent
RECORDS = {
    name: json.loads((FOLDER / name / "results.json").read_text(encoding="utf-8"))
    for name in ("tinyshakespeare", "songci")
}


def numbers_in(value) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from numbers_in(each)
    elif isinstance(value, (int, float)):
        yield value


def keys_in(value, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from keys_in(each, f"{path}/{key}")
    else:
        yield path


def assert_complete(folder: Path):
    """Every claim and every picture is in the report of `folder`."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    text = (folder / "report.md").read_text(encoding="utf-8")
    sections = re.split(r"^## \d\. ", text, flags=re.MULTILINE)[1:]
    assert len(sections) == len(SECTIONS) == 8
    for section, written in zip(SECTIONS, sections, strict=True):
        assert section.claims
        for claim in section.claims:
            found = claim.judge(results)
            assert f"| {claim.says} | {claim.method} | {found.figure} | " in written
            assert f"**{found.verdict}**: {found.because} |" in written
    assert {path.name for path in (folder / "pictures").iterdir()} == {f"{name}.svg" for name in PICTURES}
    for name in ("counts", "bigram", "babygpt", "difference"):
        svg = (folder / "pictures" / f"{name}.svg").read_text(encoding="utf-8")
        assert ">next character</text>" in svg  # characters stay text
        assert ">\u2423</text>" in svg
    text = (folder / "report.html").read_text(encoding="utf-8")
    links = re.findall(r'(?:src|srcset|href)="([^"]*)"', text)
    assert len(links) == len(PICTURES) + 1
    assert all(link.startswith("data:") for link in links)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text).replace("http-equiv", "")


@pytest.mark.slow
def test_the_command_measures_everything_and_reports_it(tmp_path, monkeypatch, capsys):
    """On a small text with characters that mean something in Markdown and HTML."""
    letters = "".join(letter for letter in load_corpus("pydocs").text if letter in "etaoinshrd \n")[:3000]
    name, folder = "a|b <i>*text*", tmp_path / "out"
    (tmp_path / f"{name}.txt").write_text(letters + "\u6625\u82b1\u79cb\u6708\u3000<>|`*_", encoding="utf-8")
    monkeypatch.setattr(study, "Effort", lambda: LITTLE)
    arguments = [f"data.path={tmp_path / name}.txt", f"run_dir={folder}", "train.steps=40", "train.batch_size=4"]
    command.main([*arguments, "model.n_embd=4"])
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    numbers = list(numbers_in(results))
    assert len(numbers) > 1000
    assert all(math.isfinite(number) for number in numbers)
    assert_complete(folder)
    # Orders, what is installed, and the step of a fit, which the record has from when it was a sweep.
    left_out = ("ngram_val", "versions", "PyTorch", "step on counts", "sweep over counts")
    ours, recorded = (
        {key for key in keys_in(each) if not any(word in key for word in left_out)}
        for each in (results, RECORDS["tinyshakespeare"])
    )
    assert ours == recorded
    assert set(results["baselines"]["loops"]) == set(libraries())


# A claim, changes of results, the verdict that follows: two at least for each.
CURVE = "training/curves/BabyGPT, AdamW"
COUNTS = "training/curves/BabyGPT, on counts"
CASES = [
    ("kinds_of_model", {"structure/bigram_trainable": 0}, HOLDS),
    ("kinds_of_model", {"structure/bigram_trainable": 9}, FAILS),
    ("babygpt_parameters", {}, LIMIT),
    ("babygpt_parameters", {"structure/babygpt_parameters": lambda r: 64 * r["corpus"]["vocab_size"]}, HOLDS),
    ("babygpt_parameters", {"structure/babygpt_parameters": 1}, FAILS),
    ("bigram_parameters", {}, HOLDS),
    ("bigram_parameters", {"structure/bigram_parameters": 1}, FAILS),
    ("gradient_descent", {f"{CURVE}/train/-1": 2.0, f"{COUNTS}/train/-1": 1.9}, LIMIT),
    ("gradient_descent", {f"{CURVE}/train/-1": 2.0, f"{COUNTS}/train/-1": 2.1}, HOLDS),
    ("gradient_descent", {f"{CURVE}/train/-1": 99.0}, FAILS),
    ("no_loss", {"training/gradient_at_counts": 1e-7}, LIMIT),
    ("no_loss", {"training/gradient_at_counts": 0.1}, HOLDS),
    ("counts_pair_by_pair", {"training/looped_difference": 0}, LIMIT),
    ("counts_pair_by_pair", {"training/looped_difference": 1}, HOLDS),
    ("whole_batch", {"training/batch_gradient_speedup": 3.0}, HOLDS),
    ("whole_batch", {"training/batch_gradient_difference": 0.1}, FAILS),
    ("forward_cost", {}, FAILS),
    ("forward_cost", {"scaling/BabyGPT forward/axes/V/exponents/flops": 0.0}, HOLDS),
    ("lookup_cost", {"scaling/bigram lookup/axes/V/exponents/seconds": 1.0}, LIMIT),
    (
        "lookup_cost",
        {f"scaling/bigram lookup/axes/{axis}/exponents/seconds": float(axis != "V") for axis in "BTV"},
        HOLDS,
    ),
    (
        "training_cost",
        {f"{CURVE}/seconds": lambda r: [1e-3 * step for step in r["training"]["curves"]["BabyGPT, AdamW"]["steps"]]},
        LIMIT,
    ),
    ("training_cost", {f"{CURVE}/seconds/-1": 1e6}, FAILS),
    (
        "counting_cost",
        {f"scaling/counting a batch, looped/axes/{axis}/exponents/seconds": 1.0 for axis in "BT"},
        HOLDS,
    ),
    ("counting_cost", {"scaling/counting a batch, looped/axes/B/exponents/seconds": 2.0}, FAILS),
    ("memory_access", {"hardware/gather_share_of_copy": 0.8, "hardware/random_over_ordered": 1.0}, FAILS),
    ("memory_access", {"hardware/gather_share_of_copy": 0.8, "hardware/random_over_ordered": 1.5}, LIMIT),
    ("memory_access", {"hardware/gather_share_of_copy": 0.3}, LIMIT),
    ("memory_access", {"hardware/gather_share_of_copy": 0.1}, HOLDS),
    ("one_lookup_one_product", {}, HOLDS),
    ("one_lookup_one_product", {"structure/gathers": 8}, FAILS),
    ("loops_over_tokens", {"baselines/one_operation/lookup_us": 1e-6}, LIMIT),
    ("loops_over_tokens", {"baselines/one_operation/lookup_us": 1e6}, HOLDS),
    (
        "softmax_draws",
        {"generation/total_variation": 0.01, "generation/expected_total_variation": 0.01},
        HOLDS,
    ),
    ("softmax_draws", {"generation/total_variation": 0.3}, FAILS),
    ("normalized_by_hand", {"generation/contexts_without_counts": 0}, HOLDS),
    ("normalized_by_hand", {"generation/contexts_without_counts": 2}, LIMIT),
    ("normalized_by_hand", {"generation/by_hand_difference": 0.1}, FAILS),
    ("composes", {}, HOLDS),
    ("composes", {"structure/rank": 90}, FAILS),
    ("implicit_associations", {"equivalence/correlation": 0.95}, LIMIT),
    ("implicit_associations", {"equivalence/correlation": 0.5}, HOLDS),
    ("any_matrix", {}, HOLDS),
    ("any_matrix", {"equivalence/probability_difference": 0.1}, FAILS),
    ("need_not_converge", {"equivalence/adamw_gap": 0.1, "equivalence/counts_gap": 1e-5}, LIMIT),
    ("need_not_converge", {"equivalence/adamw_gap": 0.1, "equivalence/counts_gap": 0.1}, HOLDS),
    ("need_not_converge", {"equivalence/adamw_gap": 1e-5}, FAILS),
    ("best_representation", {"validation/penalty_val": 2.4825}, FAILS),
    ("best_representation", {"validation/penalty_val": 2.48}, LIMIT),
    ("best_representation", {f"{CURVE}/val/-1": 2.0, "validation/penalty_val": 2.5}, LIMIT),
    ("best_representation", {f"{CURVE}/val/-1": 0.1, "extension/ngram_val/2": 0.05}, FAILS),
    ("best_representation", {f"{CURVE}/train/-1": 0.1}, HOLDS),
    ("serial", {"hardware/gather_gain_of_batch": 40.0}, FAILS),
    ("serial", {"hardware/gather_gain_of_batch": 2.0}, HOLDS),
    ("serial", {"training/halves_difference": 1}, HOLDS),
    ("trains_on_the_device", {}, HOLDS),
    ("trains_on_the_device", {"structure/host_calls": 2}, FAILS),
    ("slower_on_a_device", {"baselines/loops/JAX/count_us": 1e6}, HOLDS),
    ("slower_on_a_device", {"baselines/loops/JAX/count_us": 1e-6}, FAILS),
    ("utilization", {"hardware/gather_share_of_copy": 0.9, "hardware/forward_share_of_product": 0.5}, LIMIT),
    ("utilization", {"hardware/gather_share_of_copy": 0.1, "hardware/forward_share_of_product": 0.5}, HOLDS),
    ("launches", {"baselines/loops/JAX/lookup_us": 1e6}, HOLDS),
    ("launches", {"baselines/loops/JAX/lookup_us": 1e-9}, FAILS),
    ("takes_minutes", {"baselines/loops": {"JAX": {"count_us": 1000.0}, "C": {"count_us": 0.1}}}, LIMIT),
    ("takes_minutes", {"baselines/loops": {"JAX": {"count_us": 1000.0}}}, HOLDS),
    ("takes_minutes", {"baselines/loops": {"JAX": {"count_us": 0.1}}}, FAILS),
    ("remedy", {"baselines/one_operation/lookup_us": 1e-6}, HOLDS),
    ("remedy", {"baselines/one_operation/difference": 1.0}, FAILS),
    ("suits_a_gpu", {"hardware/gather_tokens_per_second": 1e15}, LIMIT),
    ("suits_a_gpu", {"hardware/gather_tokens_per_second": 1.0}, HOLDS),
    ("bottleneck", {"expressiveness/gap/-1": 0.4}, HOLDS),
    ("bottleneck", {"expressiveness/gap/-1": 1e-5}, LIMIT),
    ("bottleneck", {"structure/rank": 1000}, FAILS),
    ("expresses_less", {"expressiveness/gap": [0.5, 0.1, 1e-5]}, LIMIT),
    ("expresses_less", {"expressiveness/gap": [0.5, 0.3, 0.1]}, HOLDS),
    ("different_ways", {"training/kl_divergence": 0.01}, LIMIT),
    ("different_ways", {"training/kl_divergence": 1.0}, HOLDS),
    ("extends", {"extension/rung_val": 1.0, "extension/ngram_val/3": 1.0}, LIMIT),
    ("extends", {"extension/rung_val": 1.0, "extension/ngram_val": {"2": 2.0, "3": 2.1}}, HOLDS),
    ("extends", {"extension/rung_val": 99.0}, FAILS),
    ("in_disguise", {}, HOLDS),
    ("in_disguise", {"structure/change_by_earlier_tokens": 0.1}, FAILS),
]


@pytest.mark.parametrize(
    ("name", "changes", "verdict"), CASES, ids=[f"{name}-{verdict.name}" for name, _, verdict in CASES]
)
def test_the_verdict_follows_from_the_figure(name, changes, verdict):
    changed = copy.deepcopy(RECORDS["tinyshakespeare"])
    for path, value in changes.items():
        *above, key = (int(key) if key == "-1" else key for key in path.split("/"))
        reduce(getitem, above, changed)[key] = value(changed) if callable(value) else value
    (claim,) = (claim for claim in CLAIMS if claim.name == name)
    assert claim.judge(changed).verdict == verdict


def test_every_claim_is_seen_with_two_verdicts():
    assert len(CLAIMS) == 34
    for claim in CLAIMS:
        assert len({verdict for name, _, verdict in CASES if name == claim.name}) >= 2, claim.name


def test_the_loops_count_and_look_up_what_one_operation_does(rng):
    inputs, targets = rng.integers(0, 5, (2, 3, 4))
    table = rng.normal(size=(5, 5)).astype(np.float32)
    expected = table.copy()
    np.add.at(expected, (inputs, targets), 1)
    for library in libraries().values():
        x, y = library.array(inputs), library.array(targets)
        result = library.array(np.zeros((3, 4, 5), np.float32))
        assert (library.numpy(library.look_up(library.array(table), x, result)) == table[inputs]).all()
        assert library.numpy(library.count(library.array(table), x, y)) == pytest.approx(expected)


@given(exponent=st.floats(-3, 3), factor=st.floats(1e-3, 1e3))
def test_a_power_law_has_its_exponent(exponent, factor):
    sizes = [1, 4, 16, 64, 256]
    values = [7.0, 7.0, *(factor * size**exponent for size in sizes[2:])]
    assert scaling.slope(sizes, values) == pytest.approx(exponent, abs=1e-6)


@pytest.fixture
def text_file(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "letters.txt").write_text(text, encoding="utf-8")
        return f"data.path={tmp_path / 'letters.txt'}"

    return write


def test_merging_keeps_the_frequent_tokens_and_counts_the_rest_as_one(text_file):
    config = load_config([text_file("aaaabbbccd" * 40)])
    task = study.Study(config, study.Effort(merged_vocab=3)).merged
    assert task.pairs.vocab_size == 3
    assert np.bincount(task.split.train).tolist() == [144, 108, 108]


def test_a_run_that_diverges_says_so(text_file):
    options = ["train.steps=60", "optimizer=sgd", "optimizer.weight_decay=1e6", "train.batch_size=4"]
    with pytest.raises(DivergenceError, match=r"lower optimizer\.learning_rate"):
        _ = study.Study(load_config([text_file("abcab" * 40), *options]), LITTLE).adamw


@pytest.mark.parametrize("text", ["a" * 300, "ab" * 200])
def test_a_text_that_leaves_nothing_to_learn_is_refused(text_file, text):
    with pytest.raises(DataError, match="nothing to compare"):
        study.Study(load_config([text_file(text)]), LITTLE)


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("|`*_<>&\\[]()#~!-+\n")))
def test_any_text_stands_in_a_table_as_it_is(text):
    rendered = (
        MarkdownIt("commonmark", {"html": True})
        .enable("table")
        .render(f"| a | b |\n|---|---|\n| <code>{plain(text)}</code> | end |\n")
    )
    (cell,) = re.findall(r"<td><code>(.*?)</code></td>\n<td>end</td>", rendered, re.DOTALL)
    assert html.unescape(cell.replace("<br>", "\n")) == text


def test_characters_without_a_shape_are_named():
    assert [visible(character) for character in " \n\u6625a\u200b"] == ["\u2423", "\u21b5", "\u6625", "a", "U+200B"]


def test_seconds_have_the_unit_that_suits_them():
    assert [in_words(seconds) for seconds in (1.3e-5, 0.0123, 1.3, 75, 92_400)] == [
        "13 \u00b5s",
        "12.3 ms",
        "1.3 s",
        "75 s",
        "1,540 min",
    ]


def test_a_change_of_a_figure_changes_the_page():
    changed = copy.deepcopy(RECORDS["tinyshakespeare"])
    changed["structure"]["babygpt_parameters"] = 123_456
    pages = [page(markdown(each), {}) for each in (RECORDS["tinyshakespeare"], changed)]
    assert "123,456" not in pages[0]
    assert "123,456" in pages[1]
    assert pages[0].count('class="limit"') == pages[1].count('class="limit"') + 1


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("model=gpt2", "has no meaning here"),
        ("trainer=counts", "has no meaning here"),
        ("optimizer=lion", "has no meaning here"),
        ("optimizer.clip_norm=1", "has no meaning here"),
        ("data.pth=x", "did you mean data.path"),
        ("model.n_embd=none", "not an integer"),
        ("rubbish", "options are written key=value"),
    ],
)
def test_what_has_no_meaning_here_is_one_sentence(argument, says):
    with pytest.raises(ConfigError, match=says):
        command.read_config([argument])


def test_the_report_goes_where_it_is_asked_to(tmp_path):
    assert command.read_config([f"run_dir={tmp_path / 'here'}"])[1] == tmp_path / "here"
    assert command.read_config(["data.path=my text.txt"])[1] == FOLDER / "my text"
    assert "data.path" in command.help_text([])


def test_a_report_without_results_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*results\.json"):
        command.main([f"run_dir={tmp_path}", "--report"])


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
@pytest.mark.slow
def test_the_page_opens_in_a_browser(width, scheme):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium here")
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    messages, requests = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        opened.on("console", lambda message: messages.append(message.text))
        opened.on("pageerror", lambda error: messages.append(str(error)))
        opened.on("request", lambda request: requests.append(request.url))
        opened.goto((FOLDER / "songci" / "report.html").as_uri())
        opened.wait_for_function("[...document.images].every(image => image.complete)")
        pictures = opened.evaluate("[...document.images].map(image => [image.naturalWidth, image.currentSrc.length])")
        scroll = opened.evaluate("document.documentElement.scrollWidth")
        headings = opened.locator("h2").count()
        paper = opened.evaluate("getComputedStyle(document.body).backgroundColor")
        browser.close()
    assert messages == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert scroll <= width
    assert len(pictures) == len(PICTURES)
    assert all(natural > 0 for natural, _ in pictures)
    assert headings == len(SECTIONS)
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.parametrize("name", mostly_slow(RECORDS))
def test_the_report_on_record_is_that_of_its_results(name, tmp_path):
    shutil.copy(FOLDER / name / "results.json", tmp_path)
    command.main([f"run_dir={tmp_path}", "--report"])
    assert_complete(tmp_path)
    for file in ("report.md", "results.json"):
        assert (tmp_path / file).read_bytes() == (FOLDER / name / file).read_bytes()
    recorded = RECORDS[name]
    assert len(recorded["corpus"]["sha256"]) == 64
    assert {"command", "date", "machine", "device", "versions"} <= set(recorded)
    assert {claim.judge(recorded).verdict for claim in CLAIMS} == set(Verdict)

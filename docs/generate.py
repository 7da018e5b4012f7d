"""Write what the documentation takes from the package and from the records: `python -m docs.generate`.

That is docs/options.md and the recorded tables in docs/performance.md. `tests/test_docs.py` fails if a page is not what
this writes.
"""

import importlib
import re
from pathlib import Path
from typing import Any

from babyjax.compare import CompareConfig
from babyjax.config import (
    AdamWConfig,
    BabyGPTConfig,
    BigramConfig,
    CheckpointConfig,
    Config,
    CountsConfig,
    DataConfig,
    LionConfig,
    MixtureConfig,
    MuonConfig,
    NGramConfig,
    OptimizerConfig,
    ProcessesConfig,
    SGDConfig,
    SyntheticConfig,
    TrainConfig,
)
from babyjax.evaluate import EvaluateConfig
from babyjax.export import ExportConfig
from babyjax.prepare import PrepareConfig
from babyjax.recipes import PRESETS
from babyjax.sample import SampleConfig
from babyjax.schema import Options, choices_of, interval_of

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
INTRODUCTION = """\
# Options

`python -m docs.generate` writes this page from the package, and a test compares them. `babyjax train --help` prints
the same options with the values they have for the presets you name, for example `babyjax train model=gpt-tiny --help`.

- `group=preset` chooses a named combination of options: `model=`, `data=`, `trainer=`, `optimizer=`. A preset may also
  set options of other groups.
- `key=value` sets one option and wins over every preset.
- `config=FILE.yaml` reads options from a file. The command line wins over the file. A run keeps such a file, so
  `babyjax train config=checkpoints/mine/config.yaml run_dir=checkpoints/again` repeats the run. In a file a
  path of `data.tokenizer` that begins with `./` is relative to the file.
- An empty value, as in `optimizer.clip_norm=`, means "not set".
- Ranges are written as in mathematics: `[0, 1)` includes 0 and excludes 1.
- An option marked with `*` may change when a run is continued. `train.steps` is an exception if the learning rate has
  a schedule, because the schedule ends with the last step.
- Without `run_dir=` the run directory is `checkpoints/MODEL-CORPUS`, for example `checkpoints/babygpt-pydocs`."""
PRESET_NOTES = {
    "adamw": "AdamW at a constant 1e-2",
    "babygpt": "BabyGPT v1",
    "bigram": "the count bigram: `trainer=counting`",
    "counting": "count every pair or n-gram once; for `model=bigram` and `model=ngram`",
    "lion": "Lion",
    "mixing": "fit the weights of trained runs; for `model=mixture`",
    "mixture": "a linear mixture of trained runs: `trainer=mixing`",
    "muon": "Muon for the kernels of blocks, Adam for the rest",
    "ngram": "the counted n-gram: `trainer=counting`",
    "pydocs": "Python's own language reference; needs no network",
    "sgd": "SGD with momentum and gradient clipping",
    "shakespeare": "tinyshakespeare; downloaded once, then cached",
    "synthetic": "a Markov source of known entropy",
}
GROUPS: dict[str, dict[str, type[Options]]] = {
    "model": {
        "`model=bigram`": BigramConfig,
        "`model=ngram`": NGramConfig,
        "`model=mixture`": MixtureConfig,
        "every other model": BabyGPTConfig,
    },
    "data": {"every corpus": DataConfig, "`data=synthetic` besides these": SyntheticConfig},
    "trainer": {"`trainer=counts`": CountsConfig},
    "optimizer": {
        "every optimizer": OptimizerConfig,
        "`adamw` besides these": AdamWConfig,
        "`lion` besides these": LionConfig,
        "`muon` besides these": MuonConfig,
        "`sgd` besides these": SGDConfig,
    },
}


def shown(value: Any) -> str:
    """Return a value as it is typed."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value).replace("\n", "\\n")


def options_table(options: type[Options], inherited: type[Options] | None = None) -> list[str]:
    """Return a table of the options of a class, without those it has unchanged from `inherited`."""
    lines = ["| option | default | values | meaning |", "|---|---|---|---|"]
    before = inherited.model_fields if inherited else {}
    for name, field in options.model_fields.items():
        same = name in before and (before[name].default, before[name].description) == (field.default, field.description)
        if same or isinstance(field.default, Options):
            continue
        star = "\\*" if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("free") else ""
        values = ", ".join(filter(None, (*(f"`{choice}`" for choice in choices_of(field)), interval_of(field))))
        values = values or ("`true`, `false`" if field.annotation is bool else "text")
        default = f"`{shown(field.default)}`" if shown(field.default) else "not set"
        lines.append(f"| `{options.key(name)}=`{star} | {default} | {values} | {field.description} |")
    return lines


def presets_table(group: str) -> list[str]:
    """Return a table of the presets of a group."""
    lines = ["| preset | starts from | sets |", "|---|---|---|"]
    for name, (start, values) in PRESETS[group].items():
        base = f"`{start}`" if isinstance(start, str) else ""
        sets = PRESET_NOTES.get(name) or " ".join(f"`{key}={shown(value)}`" for key, value in values.items())
        lines.append(f"| `{name}` | {base} | {sets} |")
    return lines


def options_page() -> str:
    """Return docs/options.md."""
    lines = [INTRODUCTION, "", "## babyjax train", "", *options_table(Config), ""]
    for title, options in (("train", TrainConfig), ("checkpoint", CheckpointConfig), ("distributed", ProcessesConfig)):
        lines += [f"### {title}", "", *options_table(options), ""]
    for group, classes in GROUPS.items():
        lines += [f"### {group}", "", *presets_table(group), ""]
        first = next(iter(classes.values()))
        for title, options in classes.items():
            inherited = first if options is not first and issubclass(options, first) else None
            lines += [f"Options of {title}:", "", *options_table(options, inherited), ""]
    for title, options in (
        ("prepare", PrepareConfig),
        ("evaluate", EvaluateConfig),
        ("compare", CompareConfig),
        ("sample", SampleConfig),
        ("export", ExportConfig),
        ("import", importlib.import_module("babyjax.import").ImportConfig),
    ):
        table = options_table(options)
        for field in options.model_fields.values():
            if isinstance(field.default, Options):
                table += options_table(type(field.default))[2:]
        lines += [f"## babyjax {title}", "", *table, ""]
    return "\n".join(lines).rstrip() + "\n"


def with_records(text: str) -> str:
    """Return `text` with the files that its `<!-- FILE -->` comments name, each up to the next `<!-- end -->`."""

    def replace(found: re.Match[str]) -> str:
        recorded = (ROOT / found[1]).read_text(encoding="utf-8").strip()
        return f"<!-- {found[1]} -->\n\n{recorded}\n\n<!-- end -->"

    return re.sub(r"<!-- (\S+\.md) -->.*?<!-- end -->", replace, text, flags=re.DOTALL)


def pages() -> dict[Path, str]:
    """Return the pages this writes, by path."""
    performance = DOCS / "performance.md"
    return {DOCS / "options.md": options_page(), performance: with_records(performance.read_text(encoding="utf-8"))}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")

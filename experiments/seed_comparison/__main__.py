"""Every claim of the seed's comparison of BabyGPT v1 and the count bigram, measured on your device and your text.

    python -m experiments.seed_comparison
    python -m experiments.seed_comparison data.path=tinyshakespeare.txt
    python -m experiments.seed_comparison data.path=tinyshakespeare.txt --report

Writes results.json, report.md, report.html (one self-contained page) and pictures/ to `run_dir`, by default to a folder
beside this file, named after the text. With `--report` only the report is written again, from results.json. If PyTorch
is installed, its loops are measured too.
"""

import importlib.util
import json
import time
from pathlib import Path

from babyjax.cli import describe, prepare_jax, print_result, run_command
from babyjax.config import Config
from babyjax.errors import ConfigError
from babyjax.files import replace_file, user_path
from babyjax.options import corpus_name, load_config, parse_arguments

HERE = Path(__file__).parent
# The options of a training run that have a meaning here.
OPTIONS = (
    "data.",
    *(f"model.{name}" for name in ("n_embd", "bias", "block_size")),
    *(f"train.{name}" for name in ("steps", "batch_size", "seed")),
    *(f"optimizer.{name}" for name in ("learning_rate", "weight_decay", "beta1", "beta2", "eps")),
)


def help_text(argv: list[str]) -> str:
    lines = describe(load_config(argv)).splitlines()
    options = "\n".join(line for line in lines if line.strip().startswith(OPTIONS))
    return (
        "usage: python -m experiments.seed_comparison [key=value ...] [--report]\n\n"
        "Measure every claim of the seed's comparison of BabyGPT v1 and the count bigram.\n\n"
        f"{options}\n"
        "  run_dir=  folder of the report (empty: beside the script, named after the text)\n"
        "  --report  only write the report again, from results.json"
    )


def read_config(argv: list[str]) -> tuple[Config, Path]:
    """Return the options of BabyGPT v1's run, and the folder of the report. Raises: ConfigError."""
    arguments, config = parse_arguments(argv), load_config(argv)
    for key in arguments:
        if not key.startswith(OPTIONS) and key not in ("data", "run_dir"):
            raise ConfigError(f"{key}= has no meaning here; see --help")
    return config, user_path(arguments.get("run_dir") or HERE / corpus_name(config), ConfigError)


def write_report(folder: Path) -> None:
    """Write the report and its pictures from results.json in `folder`. Raises: ConfigError if it cannot be read."""
    from experiments.seed_comparison.pictures import draw_all
    from experiments.seed_comparison.report import markdown, page

    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {folder / 'results.json'}: {error}") from None
    (folder / "pictures").mkdir(exist_ok=True)
    pictures, text = draw_all(results), markdown(results)
    files = {f"pictures/{name}": svg for name, svg in pictures.items()}
    for name, content in (files | {"report.md": text, "report.html": page(text, pictures)}).items():
        replace_file(folder / name, content)


def record(config: Config, folder: Path) -> None:
    """Measure, and write results.json. Raises: ConfigError if the folder cannot be written."""
    from rich.console import Console

    from experiments.record import provenance
    from experiments.seed_comparison.measure import measure
    from experiments.seed_comparison.study import Effort

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}") from None
    prepare_jax()
    clock = time.perf_counter()
    with Console(stderr=True).status("starting") as status:
        measured = measure(config, Effort(), lambda subject: status.update(f"measuring: {subject}"))
    results = provenance("experiments.seed_comparison") | {"elapsed": time.perf_counter() - clock} | measured
    replace_file(folder / "results.json", json.dumps(results, ensure_ascii=False, allow_nan=False) + "\n")


def main(argv: list[str]) -> None:
    config, folder = read_config([argument for argument in argv if argument != "--report"])
    if not importlib.util.find_spec("matplotlib"):
        raise ConfigError("the pictures need matplotlib: pip install 'babyjax[report]'")
    if "--report" not in argv:
        record(config, folder)
    write_report(folder)
    print_result(str(folder / "report.html"))


if __name__ == "__main__":
    run_command(main, help_text)

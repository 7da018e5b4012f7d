"""Every claim of the seed's comparison of BabyGPT v1 and the count bigram, measured on your device and your text.

    python -m experiments.seed_comparison
    python -m experiments.seed_comparison data.path=tinyshakespeare.txt

Writes report.md, report.html (one page that needs nothing else), results.json and pictures/ to `run_dir`; by default
to a folder beside this file, named after the text. Where PyTorch is installed its loops are measured too.
"""

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from babyjax.config import load_config, options_of, parse_arguments
from babyjax.door import describe_options, prepare_jax, run_door
from babyjax.errors import ConfigError
from babyjax.files import replace_file, user_path
from babyjax.schema import Config

HERE = Path(__file__).parent
# Options of a training run that mean something here.
OPTIONS = (
    "data.",
    *(f"model.{name}" for name in ("n_embd", "bias", "block_size")),
    *(f"train.{name}" for name in ("steps", "batch_size", "seed")),
    *(f"optimizer.{name}" for name in ("learning_rate", "weight_decay", "beta1", "beta2", "eps")),
)


def help_text(argv: list[str]) -> str:
    options = [(key, option) for key, option in options_of(load_config(argv)).items() if key.startswith(OPTIONS)]
    return (
        "usage: python -m experiments.seed_comparison [key=value ...]\n\n"
        "BabyGPT v1 and the count bigram: every claim of the seed's comparison, measured here.\n\n"
        f"{describe_options(options)}\n"
        "  run_dir=  where the report is written (none: beside the script, in a folder named after the text)"
    )


def read_config(argv: list[str]) -> tuple[Config, Path]:
    """The options of BabyGPT v1's run, and where the report goes. Raises `ConfigError` for what has no meaning here."""
    arguments = parse_arguments(argv)
    for key in arguments:
        if not key.startswith(OPTIONS) and key not in ("data", "run_dir"):
            load_config(argv)  # which knows a typo from an option
            raise ConfigError(f"{key}= has no meaning here: BabyGPT v1 is compared with the count bigram (see --help)")
    config = load_config(argv)
    folder = arguments.get("run_dir") or HERE / config.data.name
    return config, user_path(folder, ConfigError)


def write(results: dict[str, Any], folder: Path) -> None:
    """The results, and the report made of them."""
    from experiments.seed_comparison.pictures import draw
    from experiments.seed_comparison.report import markdown, page

    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    replace_file(folder / "results.json", json.dumps(results, ensure_ascii=False, allow_nan=False) + "\n")
    pictures, text = draw(results), markdown(results)
    for name, svg in pictures.items():
        replace_file(folder / "pictures" / name, svg)
    replace_file(folder / "report.md", text)
    replace_file(folder / "report.html", page(text, pictures))


def main(argv: list[str]) -> None:
    config, folder = read_config(argv)
    if not importlib.util.find_spec("matplotlib"):
        raise ConfigError("the pictures need matplotlib: pip install -e '.[report]'")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}") from None
    prepare_jax()
    from babyjax.trainers.job import corpus_of
    from experiments.record import provenance
    from experiments.seed_comparison.measure import measure
    from experiments.seed_comparison.study import Effort

    clock = time.perf_counter()
    console = Console(stderr=True)
    corpus = corpus_of(config.data)
    with console.status("starting") as status:
        results = measure(corpus, config, Effort(), lambda what: status.update(f"measuring: {what}"))
    elapsed = time.perf_counter() - clock
    write({**provenance("experiments.seed_comparison"), "elapsed": elapsed, **results}, folder)
    print(f"{folder / 'report.html'}, after {elapsed:.0f} s")


if __name__ == "__main__":
    run_door(main, help_text)

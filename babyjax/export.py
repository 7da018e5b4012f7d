"""`babyjax export run_dir=... format=arpa`: a trained model as a file for other programs."""

from pathlib import Path
from typing import Literal

import babyjax
from babyjax.cli import describe, prepare_jax, run_command, show
from babyjax.config import Options, option
from babyjax.errors import BabyjaxError, ConfigError
from babyjax.files import replace_file, user_path
from babyjax.options import read_options


class ExportConfig(Options):
    run_dir: str | None = option(None, "run to export")
    step: str = option("newest", "checkpoint: newest, best (by validation loss) or a step")
    format: Literal["arpa"] = option("arpa", "arpa: an n-gram, for KenLM, SRILM and others")
    to: str | None = option(None, "file to write (empty: model.arpa in the run directory)")


def help_text(argv: list[str]) -> str:
    """Return the help."""
    return (
        "usage: babyjax export run_dir=DIR [key=value ...]\n\n"
        "Write a trained model in a format of other programs.\n"
        "In an ARPA file a token is a word: a character itself, or U+0020 by its code point if it is not visible;\n"
        "a byte is <0x20>. babyjax train model=ngram model.arpa=FILE reads such a file.\n\n"
        f"{describe(ExportConfig())}"
    )


def export(run_dir: str, step: str = "newest", to: str | None = None) -> Path:
    """Write the n-gram of a run as an ARPA file and return its path.

    Raises: ConfigError if the run holds another model, RunError if it cannot be read, BabyjaxError if the file cannot
    be written.
    """
    run = babyjax.load_run(run_dir, step)
    if not isinstance(run.model, babyjax.NGram):
        raise ConfigError(f"format=arpa is for model=ngram; {run_dir} holds {run.config.choices.model}")
    path = user_path(to, BabyjaxError) if to else run.folder / "model.arpa"
    try:
        replace_file(path, "".join(f"{line}\n" for line in babyjax.arpa_lines(run.model, run.tokenizer.words)))
    except OSError as error:
        raise BabyjaxError(f"cannot write {path}: {error.strerror}") from None
    return path


def main(argv: list[str]) -> None:
    """Export the run that the arguments name and print where it is."""
    config = read_options(ExportConfig, argv)
    if not config.run_dir:
        raise ConfigError("run_dir=DIR is missing: name the run to export")
    prepare_jax()
    with babyjax.Screen(stderr=True).status("writing the model"):
        path = export(config.run_dir, config.step, config.to)
    show(f"written to {path}")


if __name__ == "__main__":
    run_command(main, help_text)

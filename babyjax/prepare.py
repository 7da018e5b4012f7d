"""`babyjax prepare data.path=...`: a text of any length as a file of tokens, in the user's cache or a folder."""

import time

import babyjax
from babyjax.cli import command_line, describe, print_result, run_command
from babyjax.config import DataConfig
from babyjax.errors import ConfigError, DataError
from babyjax.files import user_path
from babyjax.options import read_options
from babyjax.schema import Options, option
from babyjax.text import duration


class PrepareConfig(Options):
    data: DataConfig = DataConfig()
    out: str | None = option(None, "folder to write (empty: the user's cache, where train finds it)")


def help_text(argv: list[str]) -> str:
    """Return the help."""
    return (
        "usage: babyjax prepare data.path=PATH [key=value ...]\n\n"
        "Encode a text into a file of tokens, a piece at a time, so that it may be larger than memory.\n"
        "babyjax train does this itself for 64 MiB or more, and both find again what was prepared in the cache.\n"
        "A folder given as out= can be moved to another machine, and is itself a data.path=.\n\n"
        f"{describe(PrepareConfig())}\n\n"
        "examples\n"
        "  babyjax prepare data.path=stories data.tokenizer=bpe data.vocab_size=4096\n"
        "  babyjax prepare data.path='stories/*.jsonl.gz' data.field=story out=prepared/stories"
    )


def main(argv: list[str]) -> None:
    """Prepare the corpus that the arguments name and print what it is and how to train on it."""
    config = read_options(PrepareConfig, argv)
    data = config.data
    if not data.path:
        raise ConfigError("data.path=PATH is missing: name the text to prepare")
    from babyjax.data.preparing import cache_folder, prepare_corpus, prepare_once, refuse_prepared

    refuse_prepared(data.path)
    folder = (
        user_path(config.out, DataError)
        if config.out
        else cache_folder(data.path, data.field, data.tokenizer, data.vocab_size)
    )
    if folder is None:
        raise ConfigError("there is no cache folder for this user; give out=FOLDER")
    write = prepare_corpus if config.out else prepare_once
    start, screen = time.perf_counter(), babyjax.Screen()
    update = screen.bar(0, 100)
    try:
        corpus = write(
            folder,
            data.path,
            data.field,
            data.tokenizer,
            data.vocab_size,
            lambda what, share: update(completed=round(100 * share), description=f"% {what}"),
        )
    finally:
        screen.close()
    print_result(_report(config, corpus, time.perf_counter() - start))


def _report(config: PrepareConfig, corpus: "babyjax.PreparedCorpus", seconds: float) -> str:
    what, data = corpus.description, config.data
    where = f"data.path={config.out or data.path}"
    tokenizer = [f"data.tokenizer={data.tokenizer}"] * (data.tokenizer != "char")
    if data.vocab_size:
        tokenizer.append(f"data.vocab_size={data.vocab_size}")
    if not config.out and data.field != "text":
        tokenizer.append(f"data.field={data.field}")
    documents = f" in {what.documents:,} documents" if what.documents > 1 else ""
    return "\n".join(
        (
            f"read      {what.bytes:,} bytes of {corpus.name}{documents}, {what.characters:,} characters",
            f"tokens    {what.tokens:,} of a vocabulary of {corpus.tokenizer.vocab_size:,}, {what.dtype}",
            f"time      {duration(seconds)}",
            f"written   {corpus.folder}",
            f"next      {command_line('train', 'model=gpt-tiny', where, *tokenizer)}",
        )
    )


if __name__ == "__main__":
    run_command(main, help_text)

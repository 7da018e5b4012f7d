"""The report of `experiments.corpora`."""

from pathlib import Path

from experiments.record import Results, origin

TEXT = """\
# Texts larger than memory

{large} of characters, from the file to pair counts, medians of rounds in turns, each in a process of its own:

| | seconds | peak memory |
|:---|---:|---:|
{counting}

A batch of {batch}, read from a warm file of {tokens} tokens:

| | ms |
|:---|---:|
{reading}

{documents} documents as JSON lines ({size}), encoded with the byte-pair encoding of pydocs into a file of ids. babyjax
also checks that the tokens give the text back, and takes its sha256:

| | seconds |
|:---|---:|
{encoding}

Learning {vocabulary} byte pairs from pydocs: {learning:.2f} s.

Training gpt-tiny-2019 for 100 steps with two evaluations, and counting the n-gram to compare with, on prepared corpora
(gpt-tiny-2019 has batches of 12 x 64):

| tokens | preparing | 100 steps | peak memory |
|:---|---:|---:|---:|
{training}

{origin}
"""


def size(count: float) -> str:
    """Return a number of bytes in decimal units."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def report(results: Results, folder: Path) -> None:
    """Write results.md."""

    def rows(name: str, *columns) -> str:
        return "\n".join(
            f"| {side} | " + " | ".join(column(row) for column in columns) + " |" for side, row in results[name].items()
        )

    training = "\n".join(
        f"| {row['tokens']:,} | {results[f'preparing {kind}']['seconds']:.1f} s | {row['training']:.1f} s | "
        f"{size(row['peak'])} |"
        for kind, row in results["training"].items()
    )
    text = TEXT.format(
        large=size(results["bytes"]),
        counting=rows("counting", lambda row: f"{row['seconds']:.1f}", lambda row: size(row["peak"])),
        batch=" x ".join(f"{number:,}" for number in results["batch"]),
        tokens=f"{results['bytes']:,}",
        reading=rows("reading", lambda row: f"{row['batch'] * 1e3:.3f}"),
        documents=f"{results['documents']['number']:,}",
        size=size(results["documents"]["bytes"]),
        encoding=rows("encoding", lambda row: f"{row['seconds']:.2f}"),
        vocabulary=f"{results['learning']['pydocs']['vocabulary']:,}",
        learning=results["learning"]["pydocs"]["learning"],
        training=training,
        origin=origin(results, "jax", "numpy"),
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.md").write_text(text, encoding="utf-8")

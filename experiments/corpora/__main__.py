"""What do texts larger than memory cost?

    python -m experiments.corpora tinyshakespeare.txt
    python -m experiments.corpora --report

The large texts are the given one, repeated, in a temporary folder (TMPDIR) that needs 25 GB. What is compared has a
process of its own each; they take turns, and medians are reported. The two corpora to train on are prepared once.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import babyjax
from babyjax.data.batches import read_windows
from experiments.corpora.report import report
from experiments.ngram.memory import peak
from experiments.record import Results, run_experiment

ROUNDS, VOCABULARY = 3, 8192
LARGE, HUGE, SMALL = 500e6, 10e9, 10e6  # bytes of text that are counted, and trained on
DOCUMENTS = 60e6  # bytes of JSON lines
BATCH = 64, 1024


def repeated(text: bytes, size: float, path: Path) -> Path:
    """Write the text as often as fits `size` bytes."""
    with path.open("wb") as file:
        for _ in range(max(1, int(size // len(text)))):
            file.write(text)
    return path


def documents(text: str, size: float, path: Path, speeches: int = 8) -> Path:
    """Write parts of the text, of some speeches each, as JSON lines, as often as fits `size` bytes."""
    parts = text.split("\n\n")
    parts = ["\n\n".join(parts[start : start + speeches]) for start in range(0, len(parts), speeches)]
    lines = "".join(json.dumps({"text": part}) + "\n" for part in parts)
    return repeated(lines.encode(), size, path)


def in_a_process(side: str, *arguments: str) -> Results:
    """Return what `measured` returns in a process of its own."""
    command = [sys.executable, "-m", "experiments.corpora.__main__", side, *arguments]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(Path(tempfile.gettempdir(), "babyjax-corpora"))}
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | cache).stdout)


def take_turns(sides: dict[str, tuple[str, ...]], rounds: int) -> Results:
    """Return the median of every number that the sides, command lines for `in_a_process`, have measured."""
    measured: dict[str, list[Results]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, arguments in sides.items():
            measured[name].append(in_a_process(*arguments))
    return {
        name: {key: median(row[key] for row in rows) if key != "details" else rows[0][key] for key in rows[0]}
        for name, rows in measured.items()
    }


def prepared(path: str, folder: str, tokenizer: str) -> Results:
    """Prepare a text."""
    corpus = babyjax.prepare_corpus(Path(folder, str(time.time_ns())), path, tokenizer=tokenizer)
    return {"tokens": len(corpus.tokens)}


def counted(path: str, folder: str, tokenizer: str) -> Results:
    """Prepare a text and count its pairs."""
    corpus = babyjax.prepare_corpus(Path(folder, str(time.time_ns())), path, tokenizer=tokenizer)
    pairs = babyjax.PairCounts.from_split(babyjax.split_tokens(corpus.tokens), corpus.tokenizer.vocab_size)
    return {"tokens": len(corpus.tokens), "pairs": len(pairs.current)}


def counted_in_memory(path: str) -> Results:
    """Read a text into memory and count its pairs."""
    corpus = babyjax.read_corpus(path)
    tokenizer = babyjax.CharTokenizer.fit(corpus.text)
    tokens = tokenizer.encode(corpus.text)
    pairs = babyjax.PairCounts.from_split(babyjax.split_tokens(tokens), tokenizer.vocab_size)
    return {"tokens": len(tokens), "pairs": len(pairs.current)}


def encoded_by_the_library(path: str, folder: str, tokenizer: str) -> Results:
    """Encode documents with the tokenizers library, a batch of all, into a file of uint16 ids."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(tokenizer)
    with Path(path).open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    encodings = encoder.encode_batch(texts, add_special_tokens=False)
    ids = np.concatenate([np.array(encoding.ids, np.uint16) for encoding in encodings])
    ids.tofile(Path(folder, str(time.time_ns())))
    return {"tokens": len(ids)}


def learned(vocabulary: str) -> Results:
    """Learn a byte-pair encoding from pydocs."""
    text = babyjax.load_corpus("pydocs").text
    start = time.perf_counter()
    tokenizer = babyjax.SubwordTokenizer.fit(text, int(vocabulary))
    return {"learning": time.perf_counter() - start, "vocabulary": tokenizer.vocab_size}


def read_by_babyjax(path: str, rounds: int = 100) -> Results:
    """Read batches from a warm file, sixteen at once, as training does."""
    tokens = np.memmap(path, np.uint8, "r")
    return {"batch": batch_seconds(lambda step: read_windows(tokens, 0, 16 * step, 16, *BATCH), rounds) / 16}


def read_by_nanogpt(path: str, rounds: int = 100) -> Results:
    """Read batches from a warm file as nanoGPT's get_batch does (commit 93a43d9)."""
    import torch

    batch_size, block_size = BATCH

    def get_batch(step: int) -> Any:
        data = np.memmap(path, np.uint8, "r")
        starts = torch.randint(len(data) - block_size, (batch_size,))
        windows = [torch.from_numpy(data[start : start + block_size].astype(np.int64)) for start in starts]
        following = [torch.from_numpy(data[start + 1 : start + 1 + block_size].astype(np.int64)) for start in starts]
        return torch.stack(windows), torch.stack(following)

    return {"batch": batch_seconds(get_batch, rounds)}


def batch_seconds(read: Callable[[int], Any], rounds: int) -> float:
    """Return the median seconds of a call, after some to warm up."""
    seconds = []
    for step in range(rounds + 10):
        start = time.perf_counter()
        read(step)
        seconds.append(time.perf_counter() - start)
    return median(seconds[10:])


def trained(path: str, folder: str, model: str, steps: str) -> Results:
    """Train a small network on a prepared corpus, by the command."""
    arguments = (f"model={model}", f"train.steps={steps}", "train.eval_interval=50", f"data.path={path}")
    config = babyjax.load_config([*arguments, f"run_dir={folder}/run-{time.time_ns()}"])
    task = babyjax.load_task(config)
    with babyjax.Run.open(config, task.corpus, task.tokenizer) as run:
        screen = babyjax.Screen(stderr=True)
        start = time.perf_counter()
        _, event, _ = babyjax.train_run(
            babyjax.Job(run, config, task, babyjax.make_trainer(config, task)),
            None,
            screen,
            lambda step, total: babyjax.ConsoleSink(screen, task.entropy, step, total),
        )
        seconds = time.perf_counter() - start
    babyjax.ngram_baseline(task.split, task.tokenizer.vocab_size)
    assert event is not None, "a new run has a last event"
    assert event.losses is not None, "a last event has losses"
    return {"tokens": len(task.split.train), "training": seconds, "val": event.losses["val"].per_token}


SIDES: dict[str, Callable[..., Results]] = {
    side.__name__: side
    for side in (
        prepared,
        counted,
        counted_in_memory,
        encoded_by_the_library,
        learned,
        read_by_babyjax,
        read_by_nanogpt,
        trained,
    )
}


def measured(side: str, *arguments: str) -> Results:
    """Run one of `SIDES`: its seconds, the peak memory of this process in bytes, and what else it returns."""
    start = time.perf_counter()
    found = SIDES[side](*arguments)
    return {"seconds": time.perf_counter() - start, "peak": peak()} | found


def measure(path: str, quick: bool) -> Results:
    """Measure everything; `quick` with a thousandth of the bytes, fewer byte pairs and BabyGPT v1."""
    text, scale, rounds = Path(path).read_bytes(), *((1e-3, 1) if quick else (1.0, ROUNDS))
    vocabulary, training = (300, ("babygpt", "2")) if quick else (VOCABULARY, ("gpt-tiny-2019", "100"))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        results: Results = {"corpus": Path(path).stem, "batch": list(BATCH)}
        large = repeated(text, LARGE * scale, work / "large.txt")
        results["counting"] = take_turns(
            {
                "babyjax": ("counted", str(large), name, "char"),
                "in memory": ("counted_in_memory", str(large)),
            },
            rounds,
        )
        results["bytes"] = large.stat().st_size
        tokens = max(work.glob("*/tokens.bin"), key=lambda file: file.stat().st_size)
        results["reading"] = take_turns(
            {"babyjax": ("read_by_babyjax", str(tokens)), "nanoGPT": ("read_by_nanogpt", str(tokens))}, rounds
        )
        clean(work)
        lines = documents(text.decode(), DOCUMENTS * scale, work / "documents.jsonl")
        learned_from = babyjax.load_corpus("pydocs").text
        (work / "tokenizer.json").write_text(babyjax.SubwordTokenizer.fit(learned_from, vocabulary).to_json())
        arguments = (str(lines), name, str(work / "tokenizer.json"))
        results["encoding"] = take_turns(
            {"babyjax": ("prepared", *arguments), "tokenizers": ("encoded_by_the_library", *arguments)}, rounds
        )
        results["documents"] = {"bytes": lines.stat().st_size, "number": lines.read_bytes().count(b"\n")}
        results["learning"] = take_turns({"pydocs": ("learned", str(vocabulary))}, rounds)
        clean(work)
        for size, kind in ((SMALL, "small"), (HUGE, "huge")):
            corpus = repeated(text, size * scale, work / f"{kind}.txt")
            start = time.perf_counter()
            babyjax.prepare_corpus(work / kind, str(corpus))
            results[f"preparing {kind}"] = {"seconds": time.perf_counter() - start, "bytes": corpus.stat().st_size}
            corpus.unlink()
            in_a_process("trained", str(work / kind), name, *training)  # counts the pairs, and warms up
        results["training"] = take_turns(
            {kind: ("trained", str(work / kind), name, *training) for kind in ("small", "huge")}, rounds
        )
    return results


def clean(work: Path) -> None:
    """Remove the files of a temporary folder."""
    for path in sorted(work.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def main() -> None:
    """Run one side, for `in_a_process`, or the experiment."""
    if len(sys.argv) > 1 and sys.argv[1] in SIDES:
        print(json.dumps(measured(*sys.argv[1:])))
    else:
        run_experiment(Path(__file__).parent, measure, report)


if __name__ == "__main__":
    main()

"""How fast is training on counts, beside AdamW on random windows, ours and PyTorch's?

    python -m experiments.counts tinyshakespeare.txt songci.txt

BabyGPT v1, n_embd = 32. On each corpus: the loss v1's AdamW ends at after its 5000 steps, what reaching that costs each
way, and how soon counts come near the optimum. All in one process, compilation apart; times from counts are medians,
from token ids on, counting included. Then a synthetic corpus of 1e9 tokens. Writes results.json and results.md beside
this file. PyTorch is needed: the `bench` extra.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from babyjax import (
    BabyGPT,
    CharTokenizer,
    ExactEvaluator,
    PairCounts,
    Split,
    count_chunks,
    read_corpus,
    split_tokens,
)
from babyjax.config import load_config
from babyjax.data.corpus import fingerprint
from babyjax.training.counts import CountsFit, CountsProblem, legs_of
from experiments.marks import train
from experiments.record import provenance, write_json
from experiments.torch_v1 import TorchV1

HERE = Path(__file__).parent
N_EMBD, STEPS, ROUNDS = 32, 5000, 5
SYNTHETIC_VOCAB, CHAINS, CHAIN_LENGTH = 26, 1_000_000, 1000


def seconds_of(action: Callable[[], Any], rounds: int = 1) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(action())
        times.append(time.perf_counter() - start)
    return median(times)


def adamw(split: Split, vocab_size: int) -> tuple[BabyGPT, float]:
    """BabyGPT v1 after its 5000 steps in our compiled loop, and their seconds."""
    *_, (_, seconds, model) = train(load_config([]), jnp.asarray(split.train), vocab_size, [STEPS])
    return model, seconds


def fit(pairs: PairCounts, steps: int, tolerance: float | None = None) -> tuple[CountsProblem, CountsFit]:
    """`steps` steps from the SVD start on the plain counts, or all there are to the tolerance."""
    problem = CountsProblem(pairs, N_EMBD, legs_of(1, 0, 0.0, 0.0), tolerance=tolerance)
    state = problem.start()
    while steps and not problem.done(state):
        state, steps = problem.advance(state), steps - 1
    return problem, state


def steps_to(pairs: PairCounts, loss_of: Callable[[BabyGPT], float], wanted: float) -> tuple[int, float]:
    """How many steps reach a loss, and the loss they reach: a dry run."""
    problem, state = fit(pairs, 0)
    steps = 0
    while (reached := loss_of(problem.model(state))) > wanted:
        state, steps = problem.advance(state), steps + 1
    return steps, reached


def compare(path: str) -> dict[str, Any]:
    corpus = read_corpus(path)
    tokenizer = CharTokenizer.fit(corpus.text)
    vocab_size = tokenizer.vocab_size
    split = split_tokens(tokenizer.encode(corpus.text))
    pairs = PairCounts.from_split(split, vocab_size)
    evaluator = ExactEvaluator(pairs, tokenizer.byte_lengths)

    def train_loss(model: BabyGPT) -> float:
        return evaluator(model)["train"].per_token

    first_fit = seconds_of(lambda: fit(pairs, 6)[1].best.head)  # sweeps and, where there are any, Newton steps
    compilation = first_fit - seconds_of(lambda: fit(pairs, 6)[1].best.head)
    model, ours = adamw(split, vocab_size)
    wanted = train_loss(model)
    loop = TorchV1(split.train, vocab_size, load_config([]))
    loop.train(10)
    theirs = seconds_of(lambda: loop.train(STEPS))

    def from_tokens(steps: int) -> float:
        return seconds_of(lambda: fit(PairCounts.from_split(split, vocab_size), steps)[1].descent.factors.head, ROUNDS)

    counting = seconds_of(lambda: PairCounts.from_split(split, vocab_size).counts["train"], ROUNDS)
    steps, reached = steps_to(pairs, train_loss, wanted)
    counts = from_tokens(steps)
    result = {
        "sha256": fingerprint(corpus.text),
        "vocab_size": vocab_size,
        "entropy": pairs.entropy("train"),
        "adamw_loss": wanted,
        "adamw_seconds": ours,
        "pytorch_seconds": theirs,
        "counts_seconds": counts,
        "counts_steps": steps,
        "counts_loss": reached,
        "counting_seconds": counting,
        "times_faster_than_adamw": ours / counts,
        "times_faster_than_pytorch": theirs / counts,
        "compilation_seconds": compilation,
    }
    problem, end = fit(pairs, -1, 1e-8 if vocab_size < 512 else None)
    optimum = train_loss(problem.model(end))
    near = optimum + 1e-3 if vocab_size < 512 else 4.80
    steps, reached = steps_to(pairs, train_loss, near)
    result["near"] = {"wanted": near, "loss": reached, "steps": steps, "seconds": from_tokens(steps)}
    whole = seconds_of(lambda: fit(PairCounts.from_split(split, vocab_size), -1)[1].best.head)
    state = fit(pairs, -1)[1]
    exact = evaluator(problem.model(state))
    result["default_tolerance"] = {
        "train": exact["train"].per_token,
        "val": exact["val"].per_token,
        "seconds": whole,
        "known": problem.quality(state),
    }
    return result


def markov_tokens(seed: int = 0) -> np.ndarray:
    """1e9 tokens of a Markov source: many chains, one after another, drawn from a table of 65,536 equal chances."""
    random = np.random.default_rng(seed)
    rows = random.dirichlet(np.full(SYNTHETIC_VOCAB, 0.3), size=SYNTHETIC_VOCAB)
    chances = (np.arange(65536) + 0.5) / 65536
    table = np.stack([np.searchsorted(row.cumsum()[:-1], chances) for row in rows]).astype(np.uint8).ravel()
    tokens = np.empty((CHAINS, CHAIN_LENGTH), np.uint8)
    state = random.integers(0, SYNTHETIC_VOCAB, CHAINS)
    for step in range(CHAIN_LENGTH):
        state = table[state * 65536 + random.integers(0, 65536, CHAINS, np.uint16)].astype(np.int64)
        tokens[:, step] = state
    return tokens.ravel()


def length_does_not_matter() -> dict[str, Any]:
    tokens = markov_tokens()
    held_out = tokens[-100_000:]
    result = {}
    for length in (1_000_000, len(tokens)):
        chunk = min(length, 10_000_000)
        pieces = [tokens[start : start + chunk] for start in range(0, length, chunk)]
        count_chunks(pieces[:1], SYNTHETIC_VOCAB)
        start = time.perf_counter()
        counts = jax.block_until_ready(count_chunks(pieces, SYNTHETIC_VOCAB))
        counting = time.perf_counter() - start
        pairs = PairCounts.from_counts(counts, count_chunks([held_out], SYNTHETIC_VOCAB))
        fit(pairs, -1)
        seconds = seconds_of(lambda pairs=pairs: fit(pairs, -1)[1].best.head, ROUNDS)
        problem, state = fit(pairs, -1)
        result[f"{length:.0e}"] = {
            "counting_seconds": counting,
            "fit_seconds": seconds,
            "loss": float(state.best_score),
            "entropy": pairs.entropy("train"),
            "known": problem.quality(state),
        }
    return result


def report(results: dict[str, Any]) -> str:
    """The tables, as Markdown."""
    names = list(results["corpora"])
    lines = [f"| BabyGPT v1, n_embd {N_EMBD} | {' | '.join(names)} |", f"|:---|{'---:|' * len(names)}"]

    def row(label: str, show: Callable[[dict[str, Any]], str]) -> None:
        lines.append(f"| {label} | {' | '.join(show(results['corpora'][name]) for name in names)} |")

    row("train loss after AdamW's 5000 steps, nats", lambda r: f"{r['adamw_loss']:.4f}")
    row("our compiled loop, s", lambda r: f"{r['adamw_seconds']:.2f}")
    row("the same loop in PyTorch eager, s", lambda r: f"{r['pytorch_seconds']:.1f}")
    row(
        "that loss from counts, counting included, s",
        lambda r: f"{r['counts_seconds']:.4f} ({r['counts_steps']} sweeps: {r['counts_loss']:.4f})",
    )
    row("times faster than our AdamW", lambda r: f"{r['times_faster_than_adamw']:.0f}")
    row("times faster than PyTorch", lambda r: f"{r['times_faster_than_pytorch']:.0f}")
    row(
        "nearer still",
        lambda r: f"{r['near']['loss']:.4f} in {r['near']['seconds']:.3f} s ({r['near']['steps']} sweeps)",
    )
    row(
        "to the default tolerance",
        lambda r: "train {train:.4f}, val {val:.4f} in {seconds:.2f} s".format(**r["default_tolerance"]),
    )
    row("compilation, once, s", lambda r: f"{r['compilation_seconds']:.1f}")
    lines += ["", "| synthetic tokens | counting, s | fit, s | loss above the entropy |", "|---:|---:|---:|---:|"]
    for length, r in results["synthetic"].items():
        lines.append(
            f"| {length} | {r['counting_seconds']:.4f} | {r['fit_seconds']:.3f} | {r['loss'] - r['entropy']:.1e} |"
        )
    lines += [
        "",
        f"`{results['command']}`, {results['date']}, {results['machine']}, jax {results['versions']['jax']}, "
        f"torch {results['versions']['torch']}.",
    ]
    return "\n".join(lines) + "\n"


def main(paths: list[str]) -> None:
    if not paths:
        sys.exit("usage: python -m experiments.counts FILE.txt ...")
    results = {
        **provenance("experiments.counts"),
        "corpora": {Path(path).stem: compare(path) for path in paths},
        "synthetic": length_does_not_matter(),
    }
    write_json(HERE / "results.json", results)
    (HERE / "results.md").write_text(report(results), encoding="utf-8")
    print(report(results))


if __name__ == "__main__":
    main(sys.argv[1:])

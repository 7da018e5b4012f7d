"""How much does a narrow embedding cost? The best loss at every width, beside what AdamW reaches with v1's budget.

    python -m experiments.rank_frontier tinyshakespeare.txt

The seed says that n_embd < vocab_size is a bottleneck. Here is how narrow it has to be: for every width the lowest
exact training loss found, its gap to the entropy, and that gap as a share of the mutual information of neighbours, all
that a previous-token model can learn. Writes results.json, results.md and frontier.svg beside this file; the picture
needs matplotlib, the `bench` extra.
"""

import sys
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from babyjax import (
    BabyGPT,
    CharTokenizer,
    ExactEvaluator,
    PairCounts,
    Split,
    read_corpus,
    split_tokens,
)
from babyjax.config import load_config
from babyjax.data.corpus import fingerprint
from babyjax.training.counts import CountsProblem, Leg, legs_of
from babyjax.training.factors import Factors
from experiments.marks import train
from experiments.record import provenance, write_json

HERE = Path(__file__).parent
SEED = 0


def widths_of(vocab_size: int) -> list[int]:
    """Every width where something happens, then fewer, to V."""
    return [
        *(width for width in (*range(25), 28, 32, 40, 48, 56) if width < vocab_size - 1),
        vocab_size - 1,
        vocab_size,
    ]


def effort_at(width: int) -> tuple[int, float]:
    """Starts, and the tolerance of each: minima are many where a model is narrow, and flat where it is wide."""
    return (64, 1e-5) if width <= 12 else (16, 1e-5) if width <= 18 else (3, 1e-11)


def widened(factors: Factors, width: int) -> Factors:
    """The same logits with a further direction, which the embedding does not use yet."""
    more = width - factors.embedding.shape[1]
    random = np.random.default_rng(SEED)
    head = np.hstack([factors.head, random.normal(size=(len(factors.head), more))])
    return Factors(np.pad(factors.embedding, ((0, 0), (0, more))), head, factors.bias)


def best_at(pairs: PairCounts, width: int, narrower: Factors | None) -> tuple[Factors, dict[str, Any]]:
    """The best of many starts, one of them the best of the width before, and a polish of it."""
    clock = time.perf_counter()
    starts, tolerance = effort_at(width)
    legs = legs_of(starts, SEED, 0.0, 0.0)
    given = None
    if narrower is not None and width < pairs.vocab_size:
        given = widened(narrower, min(width, pairs.vocab_size - 1))
        legs.insert(0, Leg("given", SEED, 0.0, 0.0))
    search = CountsProblem(pairs, width, legs, tolerance=tolerance, given=given)
    fit = search.start()
    while not search.done(fit):
        fit = search.advance(fit)
    polish = CountsProblem(pairs, width, [Leg("given", SEED, 0.0, 0.0)], tolerance=1e-12, given=fit.best)
    end = polish.start()
    while not polish.done(end):
        end = polish.advance(end)
    start = search.legs[int(fit.best_leg)]
    return end.best, {
        "loss": float(end.best_score),
        "starts": int(fit.leg),
        "won_by": f"{start.start}, seed {start.seed}",
        "seconds": time.perf_counter() - clock,
    }


def adamw(split: Split, vocab_size: int, width: int) -> BabyGPT:
    """BabyGPT v1 with its own budget: 5000 steps of 32 x 8 tokens."""
    config = load_config([f"model.n_embd={width}"])
    *_, mark = train(config, jnp.asarray(split.train), vocab_size, [config.train.steps])
    return mark.model


def frontier(path: str) -> dict[str, Any]:
    corpus = read_corpus(path)
    tokenizer = CharTokenizer.fit(corpus.text)
    split = split_tokens(tokenizer.encode(corpus.text))
    pairs = PairCounts.from_split(split, tokenizer.vocab_size)
    evaluator = ExactEvaluator(pairs, tokenizer.byte_lengths)
    entropy = pairs.entropy("train")

    def losses(model: BabyGPT) -> dict[str, float]:
        return {name: loss.per_token for name, loss in evaluator(model).items()}

    rows, factors = [], None
    for width in widths_of(tokenizer.vocab_size):
        factors, found = best_at(pairs, width, factors)
        exact, theirs = losses(factors.model(width)), losses(adamw(split, tokenizer.vocab_size, width))
        gap = found["loss"] - entropy
        rows.append({"n_embd": width, **found, "gap": gap, "val": exact["val"], "adamw": theirs})
        print(f"{width:4} gap {gap:.3g} val {exact['val']:.4f} adamw {theirs} {found}", flush=True)
    information = rows[0]["gap"]
    for row in rows:
        row["share_of_information"] = row["gap"] / information
    return {
        **provenance("experiments.rank_frontier"),
        "corpus": corpus.name,
        "corpus_sha256": fingerprint(corpus.text),
        "vocab_size": tokenizer.vocab_size,
        "seed": SEED,
        "entropy": entropy,
        "mutual_information": information,
        "rows": rows,
    }


def report(results: dict[str, Any]) -> str:
    """The table, as Markdown."""
    lines = [
        f"{results['corpus']}, V = {results['vocab_size']}; nats per token. Entropy {results['entropy']:.5f}; mutual "
        f"information of neighbours {results['mutual_information']:.4f}.",
        "",
        "| n_embd | best gap to the entropy | of the information | starts | validation | AdamW: gap | validation |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in results["rows"]:
        lines.append(
            f"| {row['n_embd']} | {row['gap']:.2g} | {row['share_of_information']:.2%} | {row['starts']} "
            f"| {row['val']:.4f} | {row['adamw']['train'] - results['entropy']:.4f} | {row['adamw']['val']:.4f} |"
        )
    lines += ["", f"`{results['command']}`, {results['date']}, {results['machine']}, jax {results['versions']['jax']}."]
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Any], path: Path) -> None:
    """Gap against width: the best found, and AdamW's."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    rows = results["rows"]
    widths = [row["n_embd"] for row in rows]
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    axes.semilogy(widths, [row["gap"] for row in rows], "o-", ms=4, label="best found, from counts")
    axes.semilogy(
        widths, [row["adamw"]["train"] - results["entropy"] for row in rows], "s-", ms=4, label="AdamW, v1's 5000 steps"
    )
    axes.set(
        xlabel="width of the embedding, n_embd",
        ylabel="training loss above the entropy (nats per token)",
        title=f"The bottleneck of BabyGPT v1 on {results['corpus']} (V = {results['vocab_size']})",
        ylim=(3e-11, 2),
    )
    axes.axvline(results["vocab_size"], color="grey", lw=1, ls=":")
    axes.annotate(
        "V", (results["vocab_size"], 0.3), ha="right", xytext=(-4, 0), textcoords="offset points", color="grey"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def main(paths: list[str]) -> None:
    if len(paths) != 1:
        sys.exit("usage: python -m experiments.rank_frontier FILE.txt")
    results = frontier(paths[0])
    write_json(HERE / "results.json", results)
    (HERE / "results.md").write_text(report(results), encoding="utf-8")
    draw(results, HERE / "frontier.svg")
    print(report(results))


if __name__ == "__main__":
    main(sys.argv[1:])

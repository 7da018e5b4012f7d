"""What does each rung of the ladder bring, v1 to v10, under one budget, and how far does counting get?

    python -m experiments.ladder tinyshakespeare.txt

Every rung sees 5000 batches of 32 windows of 8 tokens, by AdamW at three constant step sizes, of which validation
chooses. Beside them n-grams by interpolated modified Kneser-Ney, each order reading as many tokens less one. Losses are
of the whole validation split, a rung's tokens each from half a block of context or more. Writes results.json,
results.md and ladder.svg beside this file; the picture needs matplotlib, the `report` extra.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from babyjax import CharTokenizer, ContextEvaluator, ExactEvaluator, PairCounts, Split, read_corpus, split_tokens
from babyjax.config import choices_of, load_config
from babyjax.schema import BabyGPTConfig, Config
from experiments.ladder.ngram import KneserNey
from experiments.marks import train
from experiments.record import provenance, write_json

HERE = Path(__file__).parent
RATES, STEPS, BLOCK_SIZE = (1e-2, 3e-3, 1e-3), 5000, 8
ORDERS = range(1, BLOCK_SIZE + 2)


def rungs() -> list[str]:
    """v1 to v10, by the presets' names."""
    return [name for name in choices_of("model") if name.startswith("babygpt")][:10]


def val_loss(model: Any, config: Config, split: Split, tokenizer: CharTokenizer) -> float:
    """Nats per token over the whole validation split."""
    if model.receptive_field == 1:
        evaluate = ExactEvaluator(PairCounts.from_split(split, tokenizer.vocab_size), tokenizer.byte_lengths)
        return evaluate(model)["val"].per_token
    block_size = config.model.block_size
    evaluator = ContextEvaluator(split, tokenizer.byte_lengths, block_size, block_size // 2)
    return evaluator(model, ["val"])["val"].per_token


def climb(name: str, split: Split, tokenizer: CharTokenizer) -> dict[str, Any]:
    """A rung after the budget, at each step size."""
    losses, parameters = {}, 0
    for rate in RATES:
        config = load_config([f"model={name}", f"optimizer.learning_rate={rate}"])
        assert isinstance(config.model, BabyGPTConfig)
        assert config.model.block_size == BLOCK_SIZE
        *_, mark = train(config, jnp.asarray(split.train), tokenizer.vocab_size, [STEPS])
        losses[f"{rate:g}"] = val_loss(mark.model, config, split, tokenizer)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(mark.model))
    best = min(losses, key=losses.__getitem__)
    row = {"rung": name, "parameters": parameters, "val": losses[best], "learning_rate": best, "val_at_rates": losses}
    print(row, flush=True)
    return row


def table(results: dict[str, Any]) -> str:
    """The tables, as Markdown."""
    lines = [
        f"{results['corpus']}, V = {results['vocab_size']:,}; {results['steps']:,} steps of 32 x {BLOCK_SIZE} tokens, "
        "AdamW at the best of three constant step sizes; validation loss in nats per token.",
        "",
        "| rung | parameters | val | step size |",
        "|:---|---:|---:|---:|",
        *(
            f"| {row['rung']} | {row['parameters']:,} | {row['val']:.4f} | {row['learning_rate']} |"
            for row in results["rungs"]
        ),
        "",
        "| Kneser-Ney order | tokens read | val |",
        "|---:|---:|---:|",
        *(f"| {order} | {int(order) - 1} | {nats:.4f} |" for order, nats in results["ngrams"].items()),
        "",
        f"`{results['command']}`, {results['date']}, {results['machine']}, {results['device']}, "
        f"jax {results['versions']['jax']}.",
    ]
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Any], path: Path) -> None:
    """Rungs as points, n-grams as lines across."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    rows = results["rungs"]
    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    axes.plot(range(len(rows)), [row["val"] for row in rows], "o-", label="BabyGPT, each rung after the same budget")
    for order, nats in results["ngrams"].items():
        if 2 <= int(order) <= 6:
            axes.axhline(nats, color="grey", lw=1, ls="--")
            axes.annotate(
                f"{int(order)}-gram, counted: {nats:.3f}",
                (len(rows) - 1, nats),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                color="grey",
                fontsize=8,
            )
    names = [row["rung"].removeprefix("babygpt").lstrip("-").replace("-", "\n", 1) or "v1" for row in rows]
    axes.set_xticks(range(len(rows)), names, fontsize=8, rotation=45)
    axes.set(
        ylabel="validation loss (nats per token)",
        title=f"The ladder on {results['corpus']}: {results['steps']:,} steps of 32 x {BLOCK_SIZE} tokens a rung",
    )
    axes.grid(alpha=0.3, axis="y")
    axes.legend(loc="lower left")
    figure.savefig(path, metadata={"Date": None})


def main(paths: list[str]) -> None:
    if len(paths) != 1:
        sys.exit("usage: python -m experiments.ladder FILE.txt")
    corpus = read_corpus(paths[0])
    tokenizer = CharTokenizer.fit(corpus.text)
    split = split_tokens(tokenizer.encode(corpus.text))
    results = {
        **provenance("experiments.ladder"),
        "corpus": corpus.name,
        "sha256": corpus.sha256,
        "vocab_size": tokenizer.vocab_size,
        "seed": load_config([]).train.seed,
        "steps": STEPS,
        "ngrams": {
            str(order): float(KneserNey(split.train, tokenizer.vocab_size, order).nats(split.val).mean())
            for order in ORDERS
        },
        "rungs": [climb(name, split, tokenizer) for name in rungs()],
    }
    write_json(HERE / "results.json", results)
    (HERE / "results.md").write_text(table(results), encoding="utf-8")
    draw(results, HERE / "ladder.svg")
    print(table(results))


if __name__ == "__main__":
    main(sys.argv[1:])

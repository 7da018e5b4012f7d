"""What does it save to grow a rung from a trained lower one, against a random start?

    python -m experiments.growth tinyshakespeare.txt

For pairs of rungs between which a network can grow (babyjax.grow): the lower is trained, grown, and trained on as the
upper; beside it the upper from a random start, for as many steps as the lower and the grown one together. All by AdamW
at one constant step size, chosen for neither, on the same batches; three seeds. Losses are of the whole validation
split, each token from half a block of context or more. Writes results.json and results.md beside this file.
"""

import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import jax
import jax.numpy as jnp

from babyjax import (
    CharTokenizer,
    ContextEvaluator,
    grow,
    init_state,
    make_advance,
    read_corpus,
    split_tokens,
)
from babyjax.config import load_config
from babyjax.models import make_model
from babyjax.schema import BabyGPTConfig
from babyjax.training.optimizer import make_optimizer
from babyjax.training.step import start_key
from experiments.record import provenance, write_json

HERE = Path(__file__).parent
RATE, STEPS, EVERY, SEEDS = 1e-3, 3000, 500, (0, 1, 2)
DEEPER = "babygpt-v9-layernorm model.n_layer=6"
WIDER = "babygpt-v9-layernorm model.n_embd=64 model.block_size=16"
PAIRS = [
    ("babygpt", "babygpt-v2-position"),
    ("babygpt-v2-position", "babygpt-v8-projection"),
    ("babygpt-v4-multihead", "babygpt-v5-feedforward"),
    ("babygpt-v7-residual", "babygpt-v8-projection"),
    ("babygpt-v9-layernorm", DEEPER),
    ("babygpt-v9-layernorm", WIDER),
]


class Trainer:
    """Trains networks on one text, and says what each evaluation of the validation split gave."""

    def __init__(self, path: str):
        self.corpus = read_corpus(path)
        self.tokenizer = CharTokenizer.fit(self.corpus.text)
        self.split = split_tokens(self.tokenizer.encode(self.corpus.text))
        self.tokens = jnp.asarray(self.split.train)
        self.optimizer = make_optimizer(load_config([f"optimizer.learning_rate={RATE}"]).optimizer, STEPS)
        self._advances: dict[Any, Any] = {}

    def start(self, config: BabyGPTConfig, seed: int) -> Any:
        return jax.jit(lambda key: make_model(config, self.tokenizer.vocab_size, key))(start_key(seed))

    def val_loss(self, model: Any, config: BabyGPTConfig) -> float:
        evaluator = ContextEvaluator(
            self.split, self.tokenizer.byte_lengths, config.block_size, max(1, config.block_size // 2)
        )
        return evaluator(model, ["val"])["val"].per_token

    def train(self, model: Any, config: BabyGPTConfig, seed: int, steps: int) -> tuple[Any, list[float], float]:
        """The model after `steps`, its validation loss every `EVERY` steps, and the seconds of training alone."""
        key = (config.name, config.n_layer, config.n_embd, seed)
        state, losses, seconds = init_state(model, self.optimizer), [], 0.0
        if key not in self._advances:
            advance = make_advance(self.optimizer, seed, 32, config.block_size)
            self._advances[key] = advance.lower(state, self.tokens, 1).compile()
        for _ in range(steps // EVERY):
            start = time.perf_counter()
            state, _ = jax.block_until_ready(self._advances[key](state, self.tokens, EVERY))
            seconds += time.perf_counter() - start
            losses.append(self.val_loss(state.model, config))
        return state.model, losses, seconds


def rung(arguments: str) -> BabyGPTConfig:
    config = load_config(f"model={arguments}".split()).model
    assert isinstance(config, BabyGPTConfig)
    return config


def compare(trainer: Trainer, lower: str, upper: str, seed: int) -> dict[str, Any]:
    below, above = rung(lower), rung(upper)
    small, small_losses, small_seconds = trainer.train(trainer.start(below, seed), below, seed, STEPS)
    grown = jax.jit(lambda model: grow(model, above, start_key(seed)))(small)
    at_growth = trainer.val_loss(grown, above)
    _, grown_losses, grown_seconds = trainer.train(grown, above, seed, STEPS)
    _, random_losses, random_seconds = trainer.train(trainer.start(above, seed), above, seed, 2 * STEPS)
    reached = [(index + 1) * EVERY for index, loss in enumerate(random_losses) if loss <= at_growth]
    return {
        "seed": seed,
        "lower": small_losses[-1],
        "at_growth": at_growth,
        "grown": grown_losses,
        "random": random_losses,
        "random_reaches_at_growth_after": reached[0] if reached else None,
        "seconds": {"lower": small_seconds, "grown": grown_seconds, "random": random_seconds},
    }


def main() -> None:
    trainer = Trainer(sys.argv[1])
    results: dict[str, Any] = provenance("experiments.growth")
    results |= {"corpus": trainer.corpus.name, "sha256": trainer.corpus.sha256, "learning_rate": RATE, "steps": STEPS}
    results["pairs"] = []
    for lower, upper in PAIRS:
        runs = [compare(trainer, lower, upper, seed) for seed in SEEDS]
        results["pairs"].append({"lower": lower, "upper": upper, "runs": runs})
        print(row_of(results["pairs"][-1]), flush=True)
    write_json(HERE / "results.json", results)
    (HERE / "results.md").write_text(table(results), encoding="utf-8")
    print(table(results))


def spread(values: list[float]) -> str:
    return f"{mean(values):.3f} +-{stdev(values):.3f}"


def row_of(pair: dict[str, Any]) -> str:
    runs, half = pair["runs"], STEPS // EVERY
    reached = [run["random_reaches_at_growth_after"] for run in runs]
    saved = "never" if None in reached else f"{mean(reached):,.0f}"
    cells = [
        pair["lower"],
        pair["upper"],
        spread([run["at_growth"] for run in runs]),
        spread([run["grown"][-1] for run in runs]),
        spread([run["random"][half - 1] for run in runs]),
        spread([run["random"][-1] for run in runs]),
        saved,
        f"{mean(run['seconds']['lower'] + run['seconds']['grown'] for run in runs):.1f}",
        f"{mean(run['seconds']['random'] for run in runs):.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def table(results: dict[str, Any]) -> str:
    n = results["steps"]
    return "\n".join(
        [
            f"`{results['command']}`, {results['date']}, {results['machine']}, {results['device']}, "
            f"jax {results['versions']['jax']}; AdamW at {results['learning_rate']:g}, batches of 32 blocks",
            "",
            "Validation loss in nats per token, mean and standard deviation of three seeds.",
            "",
            f"| lower | upper | at growth | grown, {n:,} steps | random start, {n:,} | random start, {2 * n:,} "
            "| random start reaches `at growth` after | seconds, lower and grown | seconds, random |",
            "|---|---|---|---|---|---|---|---|---|",
            *(row_of(pair) for pair in results["pairs"]),
            "",
        ]
    )


if __name__ == "__main__":
    main()

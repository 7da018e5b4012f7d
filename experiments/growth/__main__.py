"""Does it save training to grow a network from a trained smaller one, instead of starting from random parameters?

    python -m experiments.growth tinyshakespeare.txt
    python -m experiments.growth --report

For pairs of rungs between which a network can grow (babyjax.grow): the smaller is trained, grown, and trained on as
the larger. Beside it the larger is trained from a random initialization for as many steps as the smaller and the grown
one together. All by AdamW at one constant learning rate, tuned for neither, on the same batches; three seeds. Losses
are over the whole validation split; each token is predicted from half a block of context or more.
"""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import babyjax
from experiments.growth.report import report
from experiments.record import counted, run_experiment

RATE, STEPS, EVERY, SEEDS = 1e-3, 3000, 500, (0, 1, 2)
PAIRS = [
    ("babygpt", "babygpt-v2-position"),
    ("babygpt-v2-position", "babygpt-v8-projection"),
    ("babygpt-v4-multihead", "babygpt-v5-feedforward"),
    ("babygpt-v7-residual", "babygpt-v8-projection"),
    ("babygpt-v9-layernorm", "babygpt-v9-layernorm model.n_layer=6"),
    ("babygpt-v9-layernorm", "babygpt-v9-layernorm model.n_embd=64 model.block_size=16"),
]


class Trained(NamedTuple):
    """A trained model, its validation losses before and during training, and the seconds of training alone."""

    model: babyjax.LanguageModel
    at_start: float
    losses: list[float]
    seconds: float


class Rung:
    """One rung on one text with one seed: its task, and how to train it."""

    def __init__(self, options: str, path: str, seed: int):
        given = [f"data.path={path}", f"optimizer.learning_rate={RATE}", f"train.seed={seed}"]
        self.config = babyjax.load_config([*f"model={options}".split(), *given])
        self.task = babyjax.load_task(self.config)
        block_size = self.config.model.window
        self.evaluate = partial(
            babyjax.ContextEvaluator(self.task.split, self.task.tokenizer.byte_lengths, block_size, block_size // 2),
            splits=["val"],
        )

    def train(self, steps: int, every: int, smaller: babyjax.LanguageModel | None = None) -> Trained:
        """Train from a random initialization, or from `smaller` grown, and evaluate every `every` steps."""
        task, config = self.task, self.config.replace(train=self.config.train.replace(steps=steps))
        larger = config.model
        assert isinstance(larger, babyjax.BabyGPTConfig)
        if smaller is not None:
            task = dataclasses.replace(task, initialize=lambda key: babyjax.grow(smaller, larger, key))
        trainer = babyjax.make_trainer(config, task)
        model, at_start, losses, seconds = None, math.nan, [], 0.0
        for event in babyjax.evaluated(trainer.run(trainer.init(), (every,)), self.evaluate, every):
            seconds += event.seconds
            model = event.state.model
            if event.step == 0:
                at_start = self.evaluate(model)["val"].per_token
            elif event.losses:
                losses.append(event.losses["val"].per_token)
        assert model is not None
        return Trained(model, at_start, losses, seconds)


def compare(path: str, lower: str, upper: str, seed: int, steps: int, every: int) -> dict[str, Any]:
    """Train the larger network of a pair both ways."""
    below, above = Rung(lower, path, seed), Rung(upper, path, seed)
    small = below.train(steps, every)
    grown = above.train(steps, every, small.model)
    random = above.train(2 * steps, every)
    reached = [(index + 1) * every for index, loss in enumerate(random.losses) if loss <= grown.at_start]
    return {
        "seed": seed,
        "lower": small.losses[-1],
        "at_growth": grown.at_start,
        "grown": grown.losses,
        "random": random.losses,
        "random_reaches_at_growth_after": reached[0] if reached else None,
        "seconds": {"lower": small.seconds, "grown": grown.seconds, "random": random.seconds},
    }


def measure(path: str, quick: bool) -> dict[str, Any]:
    """Compare every pair with every seed."""
    pairs, seeds, steps, every = (PAIRS[:1], SEEDS[:2], 4, 2) if quick else (PAIRS, SEEDS, STEPS, EVERY)
    corpus = babyjax.read_corpus(path)
    results = []
    for lower, upper in pairs:
        runs = [compare(path, lower, upper, seed, steps, every) for seed in seeds]
        results.append({"lower": lower, "upper": upper, "runs": runs})
        print(results[-1], flush=True)
    about = {"corpus": corpus.name, "sha256": corpus.sha256, "learning_rate": RATE, "steps": steps}
    return about | {"counted": counted(path), "pairs": results}


if __name__ == "__main__":
    run_experiment(Path(__file__).parent, measure, report)

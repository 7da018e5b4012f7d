"""How far does each rung of the ladder get, v1 to v10, with one training budget, and how far does counting get?

    python -m experiments.ladder tinyshakespeare.txt
    python -m experiments.ladder --report

Every rung trains for 5,000 steps of 32 x 8 tokens by AdamW, at three constant learning rates, with one seed; the best
rate by validation loss is kept. Beside the rungs: n-grams with modified Kneser-Ney smoothing. Losses are over the whole
validation split; a rung predicts each token from half a block of context or more.
"""

from functools import partial
from pathlib import Path
from typing import Any

import babyjax
from babyjax.config import Config
from babyjax.counts.kneser_ney import losses_by_order
from babyjax.options import presets_of
from experiments.ladder.report import report
from experiments.record import run_experiment

RATES, STEPS, BLOCK_SIZE = (1e-2, 3e-3, 1e-3), 5000, 8
RUNGS = [name for name in presets_of("model") if name.startswith("babygpt")][:10]
ORDERS = range(1, BLOCK_SIZE + 2)


def train(config: Config, task: babyjax.Task) -> float:
    """Train to the end and return the loss on the whole validation split, in nats per token."""
    evaluate = partial(
        babyjax.ContextEvaluator(task.split, task.tokenizer.byte_lengths, BLOCK_SIZE, BLOCK_SIZE // 2), splits=["val"]
    )
    trainer = babyjax.make_trainer(config, task)
    losses = None
    for event in babyjax.evaluated(trainer.run(trainer.init()), evaluate, config.train.steps):
        losses = event.losses
    assert losses is not None
    return losses["val"].per_token


def climb(name: str, path: str, rates: tuple[float, ...], steps: int) -> dict[str, Any]:
    """Train a rung at each learning rate."""
    losses, parameters = {}, 0
    for rate in rates:
        options = [f"model={name}", f"data.path={path}", f"optimizer.learning_rate={rate}", f"train.steps={steps}"]
        config = babyjax.load_config(options)
        assert config.model.window == BLOCK_SIZE
        task = babyjax.load_task(config)
        losses[f"{rate:g}"], parameters = train(config, task), task.parameters
    best = min(losses, key=losses.__getitem__)
    row = {"rung": name, "parameters": parameters, "val": losses[best], "learning_rate": best, "val_at_rates": losses}
    print(row, flush=True)
    return row


def measure(path: str, quick: bool) -> dict[str, Any]:
    """Train every rung and count every order."""
    rungs, rates, steps, orders = (RUNGS[:1], RATES[:1], 50, ORDERS[:3]) if quick else (RUNGS, RATES, STEPS, ORDERS)
    config = babyjax.load_config([f"data.path={path}"])
    task = babyjax.load_task(config)
    counted = losses_by_order(*task.split, task.tokenizer.vocab_size)
    return {
        "corpus": task.corpus.name,
        "sha256": task.corpus.sha256,
        "vocab_size": task.tokenizer.vocab_size,
        "seed": config.train.seed,
        "steps": steps,
        "ngrams": {str(order): float(counted[order - 1]) for order in orders},
        "rungs": [climb(name, path, rates, steps) for name in rungs],
    }


if __name__ == "__main__":
    run_experiment(Path(__file__).parent, measure, report)

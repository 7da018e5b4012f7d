"""How does the loss of a network fall with its parameters and with its training tokens, if the floor is known?

    python -m experiments.scaling
    python -m experiments.scaling --report

The text comes from a random Markov source of order 4, so its entropy is known exactly, and so is what the
source itself loses on the validation tokens. The excess of a model is its loss minus that. Networks of several widths
learn from several numbers of tokens, by one epoch of random windows; counted n-grams learn from the same tokens. A seed
draws the source, the text and the network.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import least_squares

import babyjax
from babyjax.cli import prepare_jax
from babyjax.data.markov import MarkovSource
from babyjax.training.gradient import GradientTrainer
from experiments.record import Results, provenance, write_json
from experiments.scaling.report import report

MODULE = "experiments.scaling"
RECIPE, STATES, ORDER, LAYERS, BLOCK_SIZE, BATCH_SIZE = "gpt-tiny", 8, 4, 2, 32, 32
WIDTHS, SEEDS, VALIDATION = (8, 16, 32, 64), range(3), 1 << 18
TOKENS = tuple(BATCH_SIZE * BLOCK_SIZE * steps for steps in (250, 500, 1000))


class Text(NamedTuple):
    """The tokens of a source, what it loses itself on those that are scored, and its entropy rate, in nats."""

    train: Int[np.ndarray, " L"]
    val: Int[np.ndarray, " M"]
    nats: Float[np.ndarray, " M-1"]
    entropy_rate: float

    @classmethod
    def draw(cls, seed: int, train: int, validation: int) -> "Text":
        """Draw a source and a text of it."""
        rng = np.random.default_rng(seed)
        source = MarkovSource.random(rng, STATES, ORDER)
        path = source.draw(rng, train + validation)
        return cls(path[:train], path[train:], source.nats(path)[train + 1 :], source.entropy_rate)


def network(text: Text, width: int, tokens: int, seed: int) -> tuple[int, float]:
    """Train a network on the first `tokens`. Returns its number of parameters and its excess."""
    steps = tokens // (BATCH_SIZE * BLOCK_SIZE)
    sizes = f"model.n_embd={width} model.n_layer={LAYERS} model.n_head=4 model.n_kv_head=4"
    sizes += f" model.block_size={BLOCK_SIZE}"
    train = f"train.batch_size={BATCH_SIZE} train.steps={steps} train.seed={seed} optimizer.warmup_steps={steps // 20}"
    config = babyjax.load_config([f"model={RECIPE}", *sizes.split(), *train.split()])
    model_config, split = config.model, babyjax.Split(text.train[:tokens], text.val)
    assert isinstance(model_config, babyjax.BabyGPTConfig)
    trainer = GradientTrainer(
        lambda key: babyjax.BabyGPT(model_config, STATES, key), split.train, BLOCK_SIZE, config.train, config.optimizer
    )
    *_, last = trainer.run(trainer.init())
    model = last.state.model
    nats = babyjax.token_nats(model, split, np.ones(STATES, np.int64), "val", BLOCK_SIZE // 2)
    return sum(leaf.size for leaf in jax.tree.leaves(model)), float(np.mean(nats - text.nats))


def ngram(text: Text, tokens: int) -> tuple[int, float]:
    """Count the first `tokens`. Returns the order that is best for the last tenth of them, and the excess."""
    split = babyjax.Split(text.train[:tokens], text.val)
    baseline = babyjax.ngram_baseline(split, STATES)
    return baseline.order, float(np.mean(baseline.nats - text.nats))


def fit(
    parameters: Float[np.ndarray, " K"], tokens: Float[np.ndarray, " K"], excess: Float[np.ndarray, " K"], floor: float
) -> dict[str, float]:
    """Fit excess = A / N^alpha + B / D^beta to logarithms, and also loss = E + A / N^alpha + B / D^beta."""
    size, data = np.log(parameters), np.log(tokens)

    def predicted(x: Float[np.ndarray, " P"]) -> Float[np.ndarray, " K"]:
        return np.logaddexp(x[0] - np.exp(x[1]) * size, x[2] - np.exp(x[3]) * data)

    def misfit_of_all(x: Float[np.ndarray, " 5"]) -> Float[np.ndarray, " K"]:
        return np.log(np.maximum(x[4], 1e-9) + np.exp(predicted(x))) - np.log(floor + excess)

    starts = [
        (a, np.log(alpha), b, np.log(beta)) for a in (0, 4) for b in (0, 4) for alpha in (0.3, 1) for beta in (0.3, 1)
    ]
    known = min(
        (least_squares(lambda x: predicted(x) - np.log(excess), start) for start in starts),
        key=lambda found: found.cost,
    )
    free = min((least_squares(misfit_of_all, (*start, floor)) for start in starts), key=lambda found: found.cost)
    return {
        "alpha": float(np.exp(known.x[1])),
        "beta": float(np.exp(known.x[3])),
        "residual": float(np.sqrt(2 * known.cost / len(excess))),
        "alpha_free": float(np.exp(free.x[1])),
        "beta_free": float(np.exp(free.x[3])),
        "floor_error": float(free.x[4] - floor),
    }


def measure(seed: int, widths: Sequence[int], tokens: Sequence[int], validation: int) -> Results:
    """Train and count everything on the text of one seed."""
    text = Text.draw(seed, max(tokens), validation)
    rows = []
    for count in tokens:
        for width in widths:
            parameters, excess = network(text, width, count, seed)
            rows.append({"width": width, "parameters": parameters, "tokens": count, "excess": excess})
            print(seed, rows[-1], flush=True)
    sizes, counts, excesses = (
        np.array([row[key] for row in rows], float) for key in ("parameters", "tokens", "excess")
    )
    counted = [ngram(text, count) for count in tokens]
    slope = np.polyfit(np.log(tokens), np.log([excess for _, excess in counted]), 1)[0]
    return {
        "seed": seed,
        "entropy_rate": text.entropy_rate,
        "floor": float(text.nats.mean()),
        "networks": rows,
        "ngrams": [
            {"tokens": count, "order": order, "excess": excess}
            for count, (order, excess) in zip(tokens, counted, strict=True)
        ],
        "ngram_beta": -float(slope),
        "fit": fit(sizes, counts, excesses, text.entropy_rate),
    }


def main() -> None:
    """Measure, write results.json and report."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--report", action="store_true", help="rewrite text and picture from results.json")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script; needs --out")
    parser.add_argument("--out", type=Path, help="folder to write to (default: beside the script)")
    options = parser.parse_args()
    if options.quick and not options.out:
        parser.error("--quick needs --out FOLDER")
    folder = Path(__file__).parent
    out = options.out or folder
    if not options.report:
        prepare_jax()
        widths, tokens, validation = (
            (WIDTHS[:2], [BATCH_SIZE * BLOCK_SIZE * steps for steps in (3, 6)], 4000)
            if options.quick
            else (WIDTHS, TOKENS, VALIDATION)
        )
        seeds = SEEDS[:2] if options.quick else SEEDS
        runs = [measure(seed, widths, tokens, validation) for seed in seeds]
        out.mkdir(parents=True, exist_ok=True)
        about = {"states": STATES, "order": ORDER, "block_size": BLOCK_SIZE, "batch_size": BATCH_SIZE}
        write_json(out / "results.json", provenance(MODULE) | about | {"runs": runs})
    report(json.loads(((folder if options.report else out) / "results.json").read_text(encoding="utf-8")), out)


if __name__ == "__main__":
    main()

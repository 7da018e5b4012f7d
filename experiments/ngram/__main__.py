"""How far does counting get, alone and mixed with a small GPT, static and adaptive?

    python -m experiments.ngram tinyshakespeare.txt
    python -m experiments.ngram --report

N-grams of every order, with the published and with fitted discounts; PPMd as the bar of adaptive models; gpt-tiny-2019
with three seeds, alone, as an ensemble and mixed with n-grams; and what the 7-gram costs in time and memory. Losses are
over the whole validation split. Needs pyppmd, of the `bench` extra.
"""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np

import babyjax
from babyjax.counts.kneser_ney import (
    Discounts,
    choose_order,
    estimate_ngram,
    evidence_of,
    fit_discounts,
    knowledge_at,
    nats_at,
)
from babyjax.evaluation.mixing import MixtureEvaluator, cross_fitted
from babyjax.models.mixture import FEATURES
from experiments.ngram.report import report
from experiments.record import run_experiment

ORDERS, SEEDS, ORDER = range(1, 11), (0, 1, 2), 7
MEGABYTES, MEMORY_ORDER = 50, 5


class Text:
    """One text, its split, and the losses of n-grams on its validation split."""

    def __init__(self, path: str, quick: bool):
        sizes = ["model.n_embd=8", "model.n_head=2", "model.n_layer=1"] if quick else []
        self.path, self.config = path, babyjax.load_config(["model=gpt-tiny-2019", *sizes, f"data.path={path}"])
        self.task = babyjax.load_task(self.config)
        self.split, self.vocab_size = self.task.split, self.task.tokenizer.vocab_size

    def counted(self, order: int, adaptive: bool, fitted: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the losses of the n-gram, and what it knows, token by token."""
        discounts: Discounts | None = None
        if fitted:
            discounts = fit_discounts(self.split.train, self.vocab_size, order, adaptive=adaptive)[0]
        evidence = evidence_of(*self.split, self.vocab_size, order, adaptive=adaptive, discounts=discounts)
        return nats_at(evidence, self.vocab_size), knowledge_at(evidence)

    def trained(self, seed: int, steps: int) -> np.ndarray:
        """Train gpt-tiny-2019 and return its losses token by token."""
        train = self.config.train.replace(steps=steps, seed=seed)
        trainer = babyjax.make_trainer(self.config.replace(train=train), self.task)
        *_, last = trainer.run(trainer.init())
        evaluator = MixtureEvaluator(self.split, self.task.tokenizer.byte_lengths)
        return evaluator.part_nats([last.state.model])[0][:, 0]


def ppmd(text: str) -> dict[str, float]:
    """Return what PPMd variant I needs for the last tenth after the rest, in nats per character, by order."""
    import pyppmd

    first = text[: int(0.9 * len(text))]

    def size(text: str, order: int) -> int:
        return len(pyppmd.compress(text.encode(), max_order=order, mem_size=256 << 20, variant="I"))

    return {
        str(order): (size(text, order) - size(first, order)) * 8 * math.log(2) / (len(text) - len(first))
        for order in (5, 6, 7, 8)
    }


def mixtures(text: Text, networks: list[np.ndarray], orders: list[tuple[int, bool]]) -> list[dict[str, Any]]:
    """Return the cross-fitted losses of mixtures of an n-gram with each network, and of all of them together."""
    rows, nothing = [], np.zeros((len(networks[0]), 3))
    ensemble = np.stack(networks, axis=1)
    rows.append({"parts": "ensemble", "static": [cross_fitted(ensemble, nothing, 1).mean()]})
    for order, fitted in orders:
        row: dict[str, Any] = {"parts": "network and n-gram", "order": order, "fitted": fitted}
        for adaptive in (False, True):
            nats, knowledge = text.counted(order, adaptive, fitted)
            pairs = [np.stack([network, nats], axis=1) for network in networks]
            every = np.column_stack([ensemble, nats])
            key = "adaptive" if adaptive else "static"
            row |= {
                f"{key}_ngram": nats.mean(),
                f"{key}_global": [cross_fitted(pair, nothing, 1).mean() for pair in pairs],
                key: [cross_fitted(pair, knowledge, FEATURES).mean() for pair in pairs],
                f"{key}_ensemble": cross_fitted(every, knowledge, FEATURES).mean(),
            }
        rows.append(row)
    return rows


def seconds_of(run: Callable[[], Any], rounds: int) -> float:
    """Return the median seconds of a call, compiled before."""
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return median(times)


def costs(text: Text, order: int, rounds: int, drawn: int) -> dict[str, float]:
    """Return seconds to count, to choose the order and to evaluate, and sampled tokens per second."""
    train, byte_lengths = text.split.train, text.task.tokenizer.byte_lengths
    model = estimate_ngram(train, text.vocab_size, order)
    evaluator = babyjax.ContextEvaluator.for_model(model, text.split, byte_lengths)

    def sample(batch: int) -> float:
        prompts, key = np.zeros((batch, 1), np.int32), jax.random.key(0)
        return batch * drawn / seconds_of(lambda: babyjax.generate(model, prompts, key, drawn), rounds)

    return {
        "order": order,
        "ngrams": model.size,
        "count": seconds_of(lambda: estimate_ngram(train, text.vocab_size, order).last[...], rounds),
        "choose_order": seconds_of(lambda: choose_order(train, text.vocab_size), rounds),
        "evaluate_val": seconds_of(lambda: evaluator(model, ["val"]), rounds),
        "evaluate_both": seconds_of(lambda: evaluator(model), rounds),
        "adaptive_val": seconds_of(lambda: text.counted(order, True, False), rounds),
        "sample_1": sample(1),
        "sample_16": sample(16),
    }


def memory(megabytes: float) -> dict[str, Any]:
    """Count in a process of its own."""
    command = [sys.executable, "-m", "experiments.ngram.memory", str(megabytes), str(MEMORY_ORDER)]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def measure(path: str, quick: bool) -> dict[str, Any]:
    """Measure everything on one text."""
    orders, seeds, steps = (range(1, 4), SEEDS[:2], 4) if quick else (ORDERS, SEEDS, 2000)
    text = Text(path, quick)
    by_order = []
    for order in orders:
        row: dict[str, float] = {"order": order}
        for fitted in (False, True):
            for adaptive in (False, True):
                key = f"{'adaptive' if adaptive else 'static'}_{'fitted' if fitted else 'published'}"
                row[key] = text.counted(order, adaptive, fitted)[0].mean()
        by_order.append(row)
        print(row, flush=True)
    timed = costs(text, 3 if quick else ORDER, 1 if quick else 5, 5 if quick else 5000)
    networks = [text.trained(seed, steps) for seed in seeds]
    best = 2 if quick else ORDER
    return {
        "corpus": text.task.corpus.name,
        "sha256": text.task.corpus.sha256,
        "vocab_size": text.vocab_size,
        "tokens": [len(part) for part in text.split],
        "chosen_order": choose_order(text.split.train, text.vocab_size),
        "orders": by_order,
        "ppmd": ppmd(babyjax.read_corpus(path).text),
        "steps": steps,
        "networks": [nats.mean() for nats in networks],
        "mixtures": mixtures(text, networks, [(best, False), (best, True), (best + 1, True)]),
        "costs": timed,
        "memory": memory(0.2 if quick else MEGABYTES),
    }


if __name__ == "__main__":
    run_experiment(Path(__file__).parent, measure, report)

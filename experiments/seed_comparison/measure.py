"""The figures of the report. Each function measures one subject and returns plain numbers for results.json."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import babyjax
from babyjax.config import Config, CountsConfig
from babyjax.counts.fit import SMOOTHINGS
from babyjax.counts.kneser_ney import losses_by_order
from babyjax.training.optimizer import make_optimizer
from babyjax.training.step import sum_nats
from experiments.record import take_turns
from experiments.seed_comparison.baselines import baselines, count, timed
from experiments.seed_comparison.hardware import hardware
from experiments.seed_comparison.predictions import (
    divergence,
    equivalence,
    generation,
    logits_of,
    matrices,
    parameters_of,
    rank_of,
)
from experiments.seed_comparison.scaling import scaling
from experiments.seed_comparison.study import WITH_TORCH, Effort, Study


def structure(study: Study) -> dict[str, Any]:
    """Count parameters, and the operations of the forward pass and of training."""
    model, config = study.adamw.model, study.config
    inputs, targets = study.batch
    predict = jax.jit(lambda model, tokens: model(tokens))
    gradient = jax.eval_shape(jax.grad(sum_nats), model, inputs, targets)
    jaxpr = str(jax.make_jaxpr(lambda tokens: model(tokens))(inputs))
    embedding, kernel, bias = parameters_of(model)
    logits = logits_of(model)
    optimizer = partial(make_optimizer, config.optimizer, config.train.steps)
    advance = babyjax.make_advance(optimizer, config.train.batch_size, config.model.window)
    state = jax.eval_shape(lambda model: babyjax.init_state(model, optimizer(1.0)), model)
    program = advance.lower(state, jnp.asarray(study.tokens), 1, babyjax.Hyper(0, 1.0)).as_text()
    changed = np.concatenate([(inputs[:, :-1] + 1) % study.vocab_size, inputs[:, -1:]], axis=1)
    return {
        "babygpt_parameters": study.task.parameters,
        "bigram_parameters": study.count_matrix.size,
        "babygpt_trainable": sum(leaf.size for leaf in jax.tree.leaves(gradient)),
        "bigram_trainable": sum(
            leaf.size for leaf in jax.tree.leaves(study.bigram) if jnp.issubdtype(leaf.dtype, jnp.floating)
        ),
        "gathers": jaxpr.count("= gather["),
        "matrix_products": jaxpr.count("= dot_general["),
        "composed_difference": float(np.abs(embedding @ kernel + bias - logits).max() / np.abs(logits).max()),
        "rank": rank_of(model),
        "host_calls": sum(program.count(call) for call in ("callback", "infeed", "outfeed")),
        "change_by_earlier_tokens": float(np.abs(predict(model, inputs)[:, -1] - predict(model, changed)[:, -1]).max()),
    }


def training(study: Study) -> dict[str, Any]:
    """Measure what each way of training reaches, and when, and whether counts are the optimum of gradient descent."""
    adamw, counts = study.adamw.curve, study.counts.curve
    curves = {"BabyGPT, AdamW": adamw}
    if WITH_TORCH:
        curves["BabyGPT, AdamW in PyTorch eager"] = study.pytorch.curve
    curves["BabyGPT, on counts"] = counts
    # The counts themselves on train; on validation with add-one smoothing, since not every pair was seen.
    bigram = {"train": study.losses(study.unsmoothed)["train"], "val": study.losses(study.bigram)["val"]}
    count_all = partial(babyjax.count_matrix, study.tokens, study.vocab_size)
    table, pairs = np.zeros((study.vocab_size,) * 2, np.float32), (study.tokens[None, :-1], study.tokens[None, 1:])
    looped, looped_seconds = timed(count, table, *pairs)
    for name, seconds in (
        ("count bigram, looped", looped_seconds),
        ("count bigram", take_turns(study.effort.rounds, it=count_all)["it"]),
    ):
        curves[name] = {"seconds": [seconds], "steps": [1], **{split: [loss] for split, loss in bigram.items()}}
    reached = [
        second for second, loss in zip(counts["seconds"], counts["train"], strict=True) if loss <= adamw["train"][-1]
    ]
    half = len(study.tokens) // 2
    halves = (study.tokens[: half + 1], study.tokens[half:])
    added = sum(np.asarray(babyjax.count_matrix(tokens, study.vocab_size), np.int64) for tokens in halves)
    return {
        "curves": curves,
        "initial": study.losses(study.initial),
        "bigram": bigram,
        "seconds_on_counts_to_adamw": min(reached, default=None),
        "looped_difference": int(np.abs(looped - study.count_matrix).max()),
        "halves_difference": int(np.abs(added - study.count_matrix).max()),
        "kl_divergence": divergence(study),
        **gradients(study),
    }


def gradients(study: Study) -> dict[str, float]:
    """Compare gradients: of a table of logits at the log counts and at zero, of a batch at once and by windows."""
    pairs = study.merged.pairs
    counts = jnp.zeros((pairs.vocab_size,) * 2).at[pairs.current, pairs.following].set(pairs.counts["train"])
    inputs, targets = study.batch

    @jax.jit
    @jax.grad
    def table_gradient(logits):
        return -(counts * jax.nn.log_softmax(logits)).sum() / counts.sum()

    @jax.jit
    @jax.grad
    def gradient(model, inputs, targets):
        return sum_nats(model, inputs, targets) / inputs.size

    def one_by_one():
        parts = [gradient(study.initial, inputs[i : i + 1], targets[i : i + 1]) for i in range(len(inputs))]
        return jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *parts)

    whole = partial(gradient, study.initial, inputs, targets)
    difference = jax.tree.map(lambda a, b: np.abs(a - b).max() / np.abs(a).max(), whole(), one_by_one())
    seconds = take_turns(study.effort.rounds, whole=whole, single=one_by_one)
    at_counts, at_zero = (table_gradient(at) for at in (jnp.log(jnp.maximum(counts, 1e-30)), jnp.zeros_like(counts)))
    return {
        "gradient_at_counts": float(np.linalg.norm(at_counts) / np.linalg.norm(at_zero)),
        "batch_gradient_difference": float(max(jax.tree.leaves(difference))),
        "batch_gradient_speedup": seconds["single"] / seconds["whole"],
    }


def validation(study: Study) -> dict[str, float]:
    """Choose BabyGPT's penalty and the bigram's smoothing by validation loss."""
    options = CountsConfig(starts=1, smoothing=0.0, choose="penalty", tolerance=study.effort.tolerance)
    trainer, fits = babyjax.make_trainer(study.config.replace(trainer=options), study.task), []
    for event in babyjax.evaluated(trainer.run(trainer.init()), study.task.evaluate, 1):
        if event.losses:  # of the best fit so far
            fits.append((event.losses["val"].per_token, event.details["penalty"]))
    val = fits[-1][0]
    smoothed = {study.task.pairs.add_k_loss("val", smoothing): smoothing for smoothing in SMOOTHINGS if smoothing}
    return {
        "penalty": next(penalty for loss, penalty in fits if loss == val),
        "penalty_val": val,
        "smoothing": smoothed[min(smoothed)],
        "smoothing_val": min(smoothed),
    }


def expressiveness(study: Study) -> dict[str, Any]:
    """Measure the least training loss found at each width, above the entropy."""
    small, bias = study.vocab_size <= 512, study.model_config.head_bias
    widths = sorted({*(w for w in study.effort.widths if w < study.vocab_size - 1), study.model_config.n_embd})
    gaps = []
    for width in widths:
        starts = 3 if small and width <= 16 else 1  # narrow networks have local minima
        tolerance = 1e-5 if small else 2e-3
        fit = babyjax.fit_counts(
            study.task.pairs, width, bias=bias, starts=starts, seed=study.config.train.seed, tolerance=tolerance
        )
        gaps.append(max(0.0, study.losses(fit.model)["train"] - study.task.entropy))
    return {"n_embd": widths, "gap": gaps}


def extension(study: Study) -> dict[str, Any]:
    """Measure what more context brings: a higher rung, until it beats both models or for their steps, and n-grams."""
    task, config = study.task, babyjax.load_config([f"model={study.effort.rung}", "optimizer.learning_rate=1e-3"])
    config = config.replace(train=config.train.replace(steps=study.config.train.steps))
    bigram, babygpt = study.losses(study.bigram)["val"], study.adamw.curve["val"][-1]
    evaluator = babyjax.ContextEvaluator(task.split, task.tokenizer.byte_lengths, config.model.window, stride=4)
    task = replace(task, initialize=partial(babyjax.make_model, config.model, study.vocab_size))
    trainer, rung, event = babyjax.make_trainer(config, task), float("inf"), None
    for event in babyjax.evaluated(trainer.run(trainer.init(), (500,)), partial(evaluator, splits=["val"]), 500):
        if event.losses and (rung := event.losses["val"].per_token) < min(bigram, babygpt):
            break
    assert event is not None
    counted = losses_by_order(*task.split, study.vocab_size)
    return {
        "rung": study.effort.rung,
        "steps": event.step,
        "rung_val": rung,
        "bigram_val": bigram,
        "babygpt_val": babygpt,
        "ngram_val": {str(order): float(counted[order - 1]) for order in study.effort.orders},
    }


SUBJECTS: dict[str, Callable[[Study], dict[str, Any]]] = {
    "structure": structure,
    "training": training,
    "scaling": lambda study: scaling(study.effort),
    "baselines": baselines,
    "generation": generation,
    "equivalence": equivalence,
    "validation": validation,
    "hardware": lambda study: hardware(study.effort),
    "expressiveness": expressiveness,
    "extension": extension,
    "matrices": matrices,
}


def measure(config: Config, effort: Effort, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure every subject; `say` is told which. Raises: DataError, DivergenceError."""
    study = Study(config, effort)
    corpus = study.task.corpus
    results: dict[str, Any] = {
        "corpus": {
            "name": corpus.name,
            "sha256": corpus.sha256,
            "characters": corpus.characters,
            "vocab_size": study.vocab_size,
            "entropy": study.task.entropy,
        },
        "options": {
            **{name: getattr(config.model, name) for name in ("n_embd", "bias", "block_size")},
            **{name: getattr(config.train, name) for name in ("batch_size", "steps", "seed")},
            "learning_rate": config.optimizer.learning_rate,
        },
    }
    for name, subject in SUBJECTS.items():
        say(name)
        results[name] = subject(study)
    return results

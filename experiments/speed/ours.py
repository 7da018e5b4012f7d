"""The measurements of babyjax. Each function prepares one and returns what is timed."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import jax
import numpy as np

import babyjax
from babyjax import CharTokenizer, ContextEvaluator, LanguageModel, PairCounts, count_chunks, count_matrix
from babyjax.counts.fit import CountsProblem, Position, plan_restarts
from babyjax.training.devices import peak_flops
from experiments.speed.synthetic import STATES, markov_tokens
from experiments.speed.workers import Details, Prepare, serve

N_EMBD = 32  # of v1


def machine():
    """The device of JAX."""
    return lambda: {"device": jax.devices()[0].device_kind, "gpu": jax.default_backend() == "gpu"}


def training(options: list[str], steps: int):
    """`steps` training steps of a run."""
    config = babyjax.load_config([*options, "train.steps=1000000000"])
    task = babyjax.load_task(config)
    trainer = babyjax.make_trainer(config, task)
    events = trainer.run(trainer.init(), (steps,))
    start = time.perf_counter()
    next(events)  # compiles
    tokens = steps * config.train.batch_size * config.model.window
    details: Details = {"compilation_seconds": time.perf_counter() - start, "tokens": tokens}
    if peak := peak_flops(jax.devices()[0].device_kind):  # the backward pass costs twice the forward
        details["seconds_at_peak"] = 3 * task.model.flops(config.model.window) * tokens / peak

    def run() -> Details:
        next(event for event in events if event.step % steps == 0)
        return details

    return run


def whole_run(options: list[str], stride: int):
    """A run from start to end, without its evaluation, and its loss over the whole validation split."""
    config = babyjax.load_config(options)
    task = babyjax.load_task(config)
    trainer = babyjax.make_trainer(config, task)
    evaluator = ContextEvaluator(task.split, task.tokenizer.byte_lengths, config.model.window, stride)

    def run() -> Details:
        seconds, event = 0.0, None
        for event in trainer.run(trainer.init()):
            seconds += event.seconds
        assert event is not None
        loss = evaluator(event.state.model, ["val"])["val"]
        details: Details = {"seconds": seconds, "val": loss.per_token, "standard_error": loss.standard_error}
        if isinstance(task.evaluate, babyjax.ExactEvaluator):
            train = task.evaluate(event.state.model)["train"].per_token
            details |= {"train": train, "entropy": task.entropy, "baseline": task.pairs.baseline("val")}
        return details

    return run


class Uncached(LanguageModel):
    """The same model, but decoding rereads its window for every token."""

    def __init__(self, model: LanguageModel):
        self.model, self.vocab_size = model, model.vocab_size

    @property
    def context_length(self) -> int:
        return self.model.context_length

    def __call__(self, tokens, *, key=None):
        return self.model(tokens, key=key)


def sampling(model: str, changes: dict[str, Any], vocab_size: int, batch: int, length: int, cached: bool = True):
    """Sample `length` tokens from a prompt of one."""
    config = babyjax.presets[model].replace(**changes)
    key = jax.random.key(0)
    network = jax.jit(partial(babyjax.make_model, config, vocab_size))(key)
    network = network if cached else Uncached(network)
    prompt = np.zeros((batch, 1), np.int32)

    def run() -> Details:
        babyjax.generate(network, prompt, key, length).block_until_ready()
        return {}

    return run


def counting(path: str):
    """Count pairs of token ids."""
    text = babyjax.read_corpus(path).text
    tokenizer = CharTokenizer.fit(text)
    ids = tokenizer.encode(text)

    def run() -> Details:
        count_matrix(ids, tokenizer.vocab_size).block_until_ready()
        return {}

    return run


def file_to_counts(path: str):
    """Read, tokenize and count a text file, compilation included."""

    def run() -> Details:
        start = time.perf_counter()
        text = babyjax.read_corpus(path).text
        tokenizer = CharTokenizer.fit(text)
        count_matrix(tokenizer.encode(text), tokenizer.vocab_size).block_until_ready()
        seconds = time.perf_counter() - start
        jax.clear_caches()
        return {"seconds": seconds}

    return run


def evaluation(path: str):
    """Evaluate v1 exactly on both splits: every token, from the pair counts."""
    task = babyjax.load_task(babyjax.load_config(["model=babygpt", f"data.path={path}"]))
    model = task.initialize(jax.random.key(0))

    def run() -> Details:
        task.evaluate(model)
        return {}

    return run


def command(arguments: list[str], until: str, cold: bool = False):
    """Run `python -m babyjax ...` until a line begins with `until`; if `cold`, without a compilation cache."""
    folder = tempfile.TemporaryDirectory()

    def run() -> Details:
        with tempfile.TemporaryDirectory() as fresh:
            cache = fresh if cold else folder.name
            start = time.perf_counter()
            with subprocess.Popen(
                [sys.executable, "-m", "babyjax", *arguments],
                cwd=folder.name,
                env=os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{cache}/xla"},
                stdout=subprocess.PIPE,
                text=True,
            ) as process:
                assert process.stdout is not None
                seconds = [time.perf_counter() - start for line in process.stdout if line.strip().startswith(until)]
        return {"seconds": seconds[0]}

    return run


def fit(path: str, adamw_steps: int | None = None):
    """Train v1 on counts, counting included: to the loss that AdamW has after `adamw_steps`, or to the tolerance."""
    task = babyjax.load_task(babyjax.load_config(["model=babygpt", f"data.path={path}"]))

    def positions(pairs: PairCounts) -> Iterator[tuple[CountsProblem, Position]]:
        problem = CountsProblem(pairs, N_EMBD, plan_restarts(1, 0, 0.0, 0.0))
        position = problem.start()
        yield problem, position
        yield from ((problem, step.position) for step in problem.run(position))

    def losses(model: LanguageModel) -> dict[str, float]:
        return {name: loss.per_token for name, loss in task.evaluate(model).items()}

    details: Details = {} if adamw_steps is None else {"adamw": losses(_adamw(path, adamw_steps))["train"]}
    for steps, (problem, position) in enumerate(positions(task.pairs)):
        details |= losses(problem.best(position).model(N_EMBD)) | {"steps": steps}
        if details["train"] <= details.get("adamw", 0.0):
            break

    def run() -> Details:
        pairs = PairCounts.from_split(task.split, task.tokenizer.vocab_size)
        problem, position = next(islice(positions(pairs), details["steps"], None))
        jax.block_until_ready(problem.best(position).model(N_EMBD))
        return details

    return run


def _adamw(path: str, steps: int) -> LanguageModel:
    config = babyjax.load_config(["model=babygpt", f"train.steps={steps}", f"data.path={path}"])
    trainer = babyjax.make_trainer(config, babyjax.load_task(config))
    *_, last = trainer.run(trainer.init())
    return last.state.model


def synthetic_counting(length: int):
    """Count pairs of synthetic tokens, 10 million at a time."""
    tokens = markov_tokens(length)
    chunks = [tokens[start : start + 10_000_000] for start in range(0, length, 10_000_000)]

    def run() -> Details:
        count_chunks(chunks, STATES).block_until_ready()
        return {}

    return run


def synthetic_fit(length: int):
    """Train v1 on the counts of synthetic tokens to the tolerance."""
    counts = count_chunks([markov_tokens(length)], STATES)
    pairs = PairCounts.from_counts(counts, counts)

    def run() -> Details:
        result = babyjax.fit_counts(pairs)
        return {"above_entropy": result.objective - pairs.entropy("train")}

    return run


MEASUREMENTS: dict[str, Prepare] = {
    "machine": machine,
    "training": training,
    "whole_run": whole_run,
    "sampling": sampling,
    "counting": counting,
    "file_to_counts": file_to_counts,
    "evaluation": evaluation,
    "command": command,
    "fit": fit,
    "synthetic_counting": synthetic_counting,
    "synthetic_fit": synthetic_fit,
}

if __name__ == "__main__":
    serve(MEASUREMENTS)

"""How fast are the two seed models, beside what a PyTorch and NumPy user would write?

    python -m experiments.speed tinyshakespeare.txt songci.txt

Every ratio is of medians over rounds in which both sides take turns, in one process, warm-up and compilation apart.
Writes results.json and results.md beside this file. PyTorch is needed: the `bench` extra.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax.numpy as jnp
import numpy as np

from babyjax import BabyGPT, CharTokenizer, ExactEvaluator, PairCounts, count_matrix, read_corpus, split_tokens
from babyjax.config import load_config
from babyjax.training.optimizer import make_optimizer
from babyjax.training.step import init_state, make_advance, start_key
from experiments.marks import train
from experiments.record import provenance, take_turns, write_json
from experiments.torch_v1 import TorchV1

HERE = Path(__file__).parent
N_EMBD = 32
COUNT_FROM_FILE = """
import sys, time, jax, numpy
from babyjax import read_corpus, CharTokenizer, count_matrix
count_matrix.__module__, jax.devices()
start = time.perf_counter()
corpus = read_corpus(sys.argv[1])
tokenizer = CharTokenizer.fit(corpus.text)
counts = count_matrix(tokenizer.encode(corpus.text), tokenizer.vocab_size).block_until_ready()
print(time.perf_counter() - start)
"""


def steps_per_second(tokens: np.ndarray, vocab_size: int, steps: int, rounds: int) -> dict[str, float]:
    config = load_config([])
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    state = init_state(BabyGPT(vocab_size, N_EMBD, key=start_key(0)), optimizer)
    on_device = jnp.asarray(tokens)
    start = time.perf_counter()
    advance = make_advance(optimizer, 0, config.train.batch_size, config.model.block_size)
    advance = advance.lower(state, on_device, 1).compile()
    compilation = time.perf_counter() - start

    def ours():
        nonlocal state
        state, losses = advance(state, on_device, steps)
        return losses

    theirs = TorchV1(tokens, vocab_size, config)
    seconds = take_turns(rounds, babyjax=ours, pytorch=lambda: theirs.train(steps))
    return {
        "babyjax_steps_per_second": steps / seconds["babyjax"],
        "pytorch_steps_per_second": steps / seconds["pytorch"],
        "ratio": seconds["pytorch"] / seconds["babyjax"],
        "compilation_seconds": compilation,
    }


def default_run(tokens: np.ndarray, tokenizer: CharTokenizer) -> dict[str, float]:
    """BabyGPT v1 at its defaults, 5000 steps: what it reaches and how long that takes."""
    config, split = load_config([]), split_tokens(tokens)
    pairs = PairCounts.from_split(split, tokenizer.vocab_size)
    *_, mark = train(config, jnp.asarray(split.train), tokenizer.vocab_size, [config.train.steps])
    exact = ExactEvaluator(pairs, tokenizer.byte_lengths)(mark.model)
    return {
        "seconds": mark.seconds,
        "train_nats_per_token": exact["train"].per_token,
        "val_nats_per_token": exact["val"].per_token,
        "train_floor": pairs.bigram_floor("train"),
        "val_add_one_bigram": pairs.bigram_floor("val"),
    }


def evaluation_ms(tokens: np.ndarray, tokenizer: CharTokenizer, rounds: int) -> float:
    """Milliseconds to evaluate BabyGPT exactly on both splits, every token once."""
    evaluator = ExactEvaluator(
        PairCounts.from_split(split_tokens(tokens), tokenizer.vocab_size), tokenizer.byte_lengths
    )
    model = BabyGPT(tokenizer.vocab_size, N_EMBD, key=start_key(0))
    return 1e3 * take_turns(rounds, babyjax=lambda: evaluator(model))["babyjax"]


def door_times() -> dict[str, float]:
    """Seconds from the command to `--help`, and to the row of the first step, on a warm compilation cache."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/xla"}
        train = [sys.executable, "-m", "babyjax.train"]

        def seconds_until(arguments: list[str], wanted: str) -> float:
            start = time.perf_counter()
            with subprocess.Popen(
                [*train, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.strip().startswith(wanted):
                        seconds = time.perf_counter() - start
                        process.communicate()
                        return seconds
            raise RuntimeError(f"no line begins with {wanted!r}")

        first_step = ["model=babygpt", "train.steps=8", "train.eval_interval=1", "overwrite=true"]
        helps = [seconds_until(["--help"], "usage") for _ in range(6)]
        steps = [seconds_until(first_step, "1 ") for _ in range(6)]
        return {
            "help_seconds": median(helps[1:]),
            "first_step_cold_cache_seconds": steps[0],
            "first_step_warm_cache_seconds": median(steps[1:]),
        }


def main() -> None:
    results: dict[str, Any] = provenance("experiments.speed")
    for path in sys.argv[1:]:
        corpus = read_corpus(path)
        tokenizer = CharTokenizer.fit(corpus.text)
        ids, vocab_size = tokenizer.encode(corpus.text), tokenizer.vocab_size
        small = vocab_size < 1000
        counting = take_turns(
            50 if small else 10,
            babyjax=lambda ids=ids, v=vocab_size: count_matrix(ids, v),
            numpy=lambda ids=ids, v=vocab_size: np.bincount(ids[:-1] * v + ids[1:], minlength=v * v).reshape(v, v),
        )
        from_file = [
            float(subprocess.run([sys.executable, "-c", COUNT_FROM_FILE, path], capture_output=True, check=True).stdout)
            for _ in range(5)
        ]
        results[corpus.name] = {
            "sha256": corpus.sha256,
            "vocab_size": vocab_size,
            "characters": len(corpus.text),
            "training": steps_per_second(split_tokens(ids).train, vocab_size, 500 if small else 60, 7 if small else 5),
            "counting": {
                "babyjax_ms": 1e3 * counting["babyjax"],
                "numpy_bincount_ms": 1e3 * counting["numpy"],
                "ratio": counting["numpy"] / counting["babyjax"],
            },
            "file_to_counts_seconds": median(from_file),
            "evaluation_ms": evaluation_ms(ids, tokenizer, 50 if small else 5),
        }
        if small:
            results[corpus.name]["default_run"] = default_run(ids, tokenizer)
    results["doors"] = door_times()
    write_json(HERE / "results.json", results)
    (HERE / "results.md").write_text(table(results), encoding="utf-8")
    print(table(results))


def table(results: dict[str, Any]) -> str:
    corpora = {name: value for name, value in results.items() if isinstance(value, dict) and "training" in value}
    lines = [
        f"`{results['command']}`, {results['date']}, {results['machine']}, {results['device']}, "
        f"jax {results['versions']['jax']}, torch {results['versions']['torch']}",
        "",
        "| what | " + " | ".join(f"{name} (V = {value['vocab_size']:,})" for name, value in corpora.items()) + " |",
        "|---|" + "---|" * len(corpora),
    ]

    def row(what: str, show: Callable[[dict[str, Any]], str]) -> None:
        lines.append(f"| {what} | " + " | ".join(show(value) for value in corpora.values()) + " |")

    row("training, steps/s", lambda r: f"{r['training']['babyjax_steps_per_second']:,.0f}")
    row("the same loop in PyTorch eager, steps/s", lambda r: f"{r['training']['pytorch_steps_per_second']:,.0f}")
    row("ratio", lambda r: f"{r['training']['ratio']:.1f} x")
    row("compilation, s", lambda r: f"{r['training']['compilation_seconds']:.2f}")
    row("counting ids, ms", lambda r: f"{r['counting']['babyjax_ms']:.2f}")
    row("np.bincount, ms", lambda r: f"{r['counting']['numpy_bincount_ms']:.2f}")
    row("ratio", lambda r: f"{r['counting']['ratio']:.2f} x")
    row("file to counts, compilation included, s", lambda r: f"{r['file_to_counts_seconds']:.2f}")
    row("exact evaluation of both splits, ms", lambda r: f"{r['evaluation_ms']:.3g}")
    for name, value in corpora.items():
        if "default_run" in value:
            run = value["default_run"]
            lines += [
                "",
                f"BabyGPT v1 on {name}, 5000 steps at its defaults: train {run['train_nats_per_token']:.4f} "
                f"(floor {run['train_floor']:.4f}), val {run['val_nats_per_token']:.4f} (add-one bigram "
                f"{run['val_add_one_bigram']:.4f}) nats per token, {run['seconds']:.2f} s after compilation.",
            ]
    doors = results["doors"]
    lines += [
        "",
        f"`python -m babyjax.train --help`: {doors['help_seconds']:.2f} s. From the command to the first step: "
        f"{doors['first_step_warm_cache_seconds']:.2f} s on a warm compilation cache, "
        f"{doors['first_step_cold_cache_seconds']:.2f} s on a cold one.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

"""Which recipe learns most in one minute, and in five, on two CPU cores?

    python -m experiments.recipes tinyshakespeare.txt [NAME ...]
    python -m experiments.recipes --report

Every variant differs from qwen-tiny by Muon, for one minute or five, or from gpt-tiny or gpt-small with a cosine, in
what its name says. Variants are judged on the last tenth of the training split, which they do not train on; nothing is
chosen on the validation split. The chosen recipes, gpt-tiny and gpt-small, are then trained on the whole training split
and evaluated on the whole validation split. Every token is predicted from at least block_size - 31 tokens of context.
Results are kept by name and seed, so variants can be measured one by one.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

import babyjax
from babyjax.cli import prepare_jax
from babyjax.config import BabyGPTConfig, Config
from babyjax.data.batches import batch_at
from babyjax.training import optimizer as optimizers
from babyjax.training.step import dropout_key, init_key, init_state, sum_nats_in_halves, train_step
from babyjax.trees import map_named
from experiments.recipes.report import report
from experiments.record import Results, provenance, write_json

STRIDE = 32


class Variant(NamedTuple):
    """A recipe and what is changed that is no option of babyjax."""

    options: str
    seeds: tuple[int, ...] = (0,)
    ema: float = 0.0  # evaluate the exponential moving average of the weights
    shuffled: bool = False  # every window of an epoch once, instead of random windows
    silent: bool = False  # start with the projections into the residual at 0
    orthogonalization: int = 5  # Newton-Schulz steps of Muon
    final: bool = False  # train on the whole training split, evaluate on the validation split


SEEDS = (0, 1, 2)
QWEN = "model=qwen-tiny optimizer=muon-cosine train.steps=1000"
SMALL = "model=gpt-small train.steps=4300 optimizer=muon-cosine"
LINEAR = "optimizer.schedule=linear optimizer.final_fraction=0"
LONG = f"{QWEN} model.block_size=128 train.batch_size=8 train.steps=3000"
VARIANTS = {
    "qwen-tiny by Muon": Variant(QWEN, SEEDS[:2]),
    "EMA of weights": Variant(QWEN, ema=0.99),
    "shuffled epochs": Variant(QWEN, shuffled=True),
    "projections start at 0": Variant(QWEN, silent=True),
    "3 Newton-Schulz steps": Variant(QWEN, orthogonalization=3),
    "batches of 24, 500 steps": Variant(f"{QWEN} train.batch_size=24 train.steps=500 optimizer.warmup_steps=50"),
    "blocks of 128, batches of 6": Variant(f"{QWEN} model.block_size=128 train.batch_size=6"),
    "Muon rate 0.04": Variant(f"{QWEN} optimizer.learning_rate=4e-2"),
    "Muon rate 0.01": Variant(f"{QWEN} optimizer.learning_rate=1e-2"),
    "as many heads of keys and values": Variant(f"{QWEN} model.n_kv_head="),
    "680 steps": Variant(f"{QWEN} train.steps=680"),
    "3 blocks": Variant(f"{QWEN} model.n_layer=3 model.unroll=3"),
    "width 96, 1,300 steps": Variant(f"{QWEN} model.n_embd=96 model.n_head=3 model.n_kv_head=1 train.steps=1300"),
    "width 64, 2,200 steps": Variant(f"{QWEN} model.n_embd=64 model.n_head=2 model.n_kv_head=1 train.steps=2200"),
    "five minutes: qwen-tiny by Muon": Variant(LONG),
    "five minutes: dropout 0.1": Variant(f"{LONG} model.dropout=0.1"),
    "five minutes: 6 blocks of width 96": Variant(
        f"{LONG} model.n_layer=6 model.unroll=6 model.n_embd=96 model.n_head=3 model.n_kv_head=1"
    ),
    "gpt-tiny, three seeds": Variant("model=gpt-tiny", SEEDS),
    "gpt-tiny: linear to 0": Variant(f"model=gpt-tiny {LINEAR}", SEEDS),
    "gpt-tiny: decay 0.2": Variant("model=gpt-tiny optimizer.weight_decay=0.2", SEEDS),
    "gpt-small: 4,300 steps": Variant(SMALL, SEEDS[:2]),
    "gpt-small: linear to 0": Variant(f"{SMALL} {LINEAR}", SEEDS[:2]),
    "gpt-small: blocks of 256, batches of 4": Variant(f"{SMALL} model.block_size=256 train.batch_size=4"),
    "gpt-small: 4 blocks of width 128": Variant(
        f"{SMALL} model.n_layer=4 model.unroll=4 model.n_embd=128 model.n_head=4 model.n_kv_head=2"
    ),
    "gpt-tiny": Variant("model=gpt-tiny", SEEDS, final=True),
    "gpt-small": Variant("model=gpt-small", SEEDS[:2], final=True),
}


def shuffled_batch(
    tokens: Int[Array, " L"], seed: Array | int, step: Array | int, batch_size: int, block_size: int
) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """Return a batch of an epoch in which every window, from a random offset on, comes once."""
    windows = (len(tokens) - 1) // block_size - 1
    key = jax.random.fold_in(jax.random.key(seed), step // (windows // batch_size))
    order = jax.random.permutation(jax.random.fold_in(key, 1), windows)
    chosen = jax.lax.dynamic_slice_in_dim(order, step % (windows // batch_size) * batch_size, batch_size)
    starts = chosen * block_size + jax.random.randint(key, (), 0, block_size)
    found = jax.vmap(lambda start: jax.lax.dynamic_slice_in_dim(tokens, start, block_size + 1))(starts)
    return found[:, :-1], found[:, 1:]


def start_of(config: Config, vocab_size: int, silent: bool) -> babyjax.BabyGPT:
    """Return the initial network of a run."""
    network = config.model
    assert isinstance(network, BabyGPTConfig)
    model = jax.jit(lambda key: babyjax.BabyGPT(network, vocab_size, key))(init_key(config.train.seed))
    return map_named(lambda name, leaf: leaf * (not silent or "projection/kernel" not in name), model)


def train(variant: Variant, seed: int, split: babyjax.Split, tokenizer: babyjax.CharTokenizer) -> dict[str, Any]:
    """Train a variant with one seed. Returns its loss, that of the averaged weights, and the seconds of training."""
    config = babyjax.load_config([*variant.options.split(), f"train.seed={seed}"])
    sizes, block = config.train, config.model.window
    with patch.object(optimizers, "muon", partial(optax.contrib.muon, ns_steps=variant.orthogonalization)):
        optimizer = optimizers.make_optimizer(config.optimizer, sizes.steps)
    make_batch = shuffled_batch if variant.shuffled else batch_at
    tokens = jnp.asarray(split.train)

    # The seed is an argument, so that the compilation cache has one program for all seeds.
    @partial(jax.jit, donate_argnums=(0, 1))
    def advance(state, average, tokens, seed, count):
        def body(_, carry):
            state, average = carry
            batch = make_batch(tokens, seed, state.step, sizes.batch_size, block)
            state, _ = train_step(state, batch, optimizer, dropout_key(seed, state.step), nats=sum_nats_in_halves)
            keep = jnp.minimum(variant.ema, state.step / (state.step + 10))
            return state, jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, average, state.model)

        return jax.lax.fori_loop(0, count, body, (state, average))

    model = start_of(config, tokenizer.vocab_size, variant.silent)
    state, average = init_state(model, optimizer), jax.tree.map(jnp.copy, model)
    program = advance.lower(state, average, tokens, seed, 1).compile()
    clock, busy = time.perf_counter(), time.process_time()
    for done in range(0, sizes.steps, 50):
        state, average = jax.block_until_ready(program(state, average, tokens, seed, min(50, sizes.steps - done)))
    seconds, cpu = time.perf_counter() - clock, time.process_time() - busy
    evaluate = babyjax.ContextEvaluator(split, tokenizer.byte_lengths, block, STRIDE)
    losses = {"val": evaluate(state.model, ["val"])["val"].per_token}
    if variant.ema:
        losses["averaged"] = evaluate(average, ["val"])["val"].per_token
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.model))
    return {"seed": seed, "parameters": parameters, "steps": sizes.steps, **losses, "seconds": seconds, "cpu": cpu}


def main() -> None:
    """Measure the named variants, or all, and write the report."""
    folder = Path(__file__).parent
    parser = argparse.ArgumentParser(prog="python -m experiments.recipes")
    parser.add_argument("text", nargs="?", help="a UTF-8 text file")
    parser.add_argument("names", nargs="*", help="variants to measure (default: all)")
    parser.add_argument("--report", action="store_true", help="rewrite the text from results.json")
    parser.add_argument("--out", type=Path, default=folder, help="folder to write to (default: beside the script)")
    options = parser.parse_args()
    if bool(options.text) == options.report:
        parser.error("give a text file, or --report")
    if odd := set(options.names) - set(VARIANTS):
        parser.error(f"unknown variant: {min(odd)}")
    path = options.out / "results.json"
    results: Results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"variants": {}}
    if options.text:
        prepare_jax()
        corpus = babyjax.read_corpus(options.text)
        tokenizer = babyjax.CharTokenizer.fit(corpus.text)
        whole = babyjax.split_tokens(tokenizer.encode(corpus.text))
        results |= {"corpus": corpus.name, "sha256": corpus.sha256}
        for name in options.names or VARIANTS:
            variant = VARIANTS[name]
            split = whole if variant.final else babyjax.split_tokens(whole.train)
            for seed in variant.seeds:
                run = train(variant, seed, split, tokenizer) | {"provenance": provenance("experiments.recipes")}
                runs = results["variants"].setdefault(name, {"options": variant.options, "runs": []})["runs"]
                runs[:] = [other for other in runs if other["seed"] != seed] + [run]
                write_json(path, results)
                print(name, {key: run[key] for key in ("seed", "val", "seconds", "cpu")}, flush=True)
    report(results, options.out)


if __name__ == "__main__":
    main()

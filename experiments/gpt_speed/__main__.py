"""How fast do the upper rungs train and decode, beside PyTorch doing the same on the same device?

    python -m experiments.gpt_speed tinyshakespeare.txt     # on a CPU
    python -m experiments.gpt_speed songci.txt              # on a GPU

On a CPU: gpt-tiny's training step in float32 on the text given, beside PyTorch eager, and what its 2000 steps reach;
sampling with a cache, beside a PyTorch loop with a cache and beside ourselves without one. On a GPU: v12 on the text
given and gpt2 at a block of 1,024, in bfloat16, beside torch.compile with scaled_dot_product_attention, as tokens/s and
as model-FLOPs utilisation; and the same sampling. Each pair takes turns in one process; medians of rounds after the
first. Needs the `bench` extra. Writes results.json and results.md beside this file, on a GPU results_gpu.json and
results_gpu.md.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from babyjax import (
    CharTokenizer,
    ContextEvaluator,
    Split,
    generate,
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
from babyjax.training.throughput import peak_flops, training_flops
from experiments import torch_gpt
from experiments.marks import train
from experiments.record import provenance, take_turns, write_json

HERE = Path(__file__).parent
ON_GPU = jax.default_backend() == "gpu"
DEVICE = "cuda" if ON_GPU else "cpu"


def training(arguments: list[str], tokens: np.ndarray, vocab_size: int, steps: int, rounds: int) -> dict[str, Any]:
    """Tokens/s of training, ours in dispatches of `steps` and PyTorch's, from the same start on the same text."""
    config = load_config(arguments)
    assert isinstance(config.model, BabyGPTConfig)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    batch_size, block_size = config.train.batch_size, config.model.block_size
    state = jax.jit(lambda: init_state(make_model(config.model, vocab_size, start_key(0)), optimizer))()
    network = torch_gpt.TorchGPT.like(state.model, config.model).to(DEVICE)
    flops = training_flops(state.model, block_size)
    on_device = jnp.asarray(tokens)
    start = time.perf_counter()
    advance = make_advance(optimizer, 0, batch_size, block_size).lower(state, on_device, 1).compile()
    compilation = time.perf_counter() - start
    adamw, data = torch_gpt.adamw(network, config.optimizer), torch.tensor(tokens, dtype=torch.long, device=DEVICE)
    compiled = torch.compile(network) if ON_GPU else network

    def ours():
        nonlocal state
        state, losses = advance(state, on_device, steps)
        return losses

    def theirs():
        with torch.autocast(DEVICE, torch.bfloat16, enabled=ON_GPU):
            torch_gpt.train(compiled, adamw, config, data, steps)
        if ON_GPU:
            torch.cuda.synchronize()

    seconds = take_turns(rounds, babyjax=ours, pytorch=theirs)
    per_dispatch = steps * batch_size * block_size
    peak = peak_flops(jax.devices()[0].device_kind)
    return {
        "arguments": arguments,
        "vocab_size": vocab_size,
        "batch": [batch_size, block_size],
        "babyjax_ms_per_step": 1e3 * seconds["babyjax"] / steps,
        "pytorch_ms_per_step": 1e3 * seconds["pytorch"] / steps,
        "babyjax_tokens_per_second": per_dispatch / seconds["babyjax"],
        "pytorch_tokens_per_second": per_dispatch / seconds["pytorch"],
        "ratio": seconds["pytorch"] / seconds["babyjax"],
        "compilation_seconds": compilation,
        "flops_per_token": flops,
        "model_flops_utilisation": flops * per_dispatch / seconds["babyjax"] / peak if peak else None,
    }


class WithoutCache(nnx.Module):
    """The same network; `generate` reads its whole context anew for every token."""

    def __init__(self, model):
        self.model, self.receptive_field = model, model.receptive_field

    def __call__(self, tokens):
        return self.model(tokens)


def sampling(name: str, vocab_size: int, batch: int, length: int, rounds: int, *, uncached: bool) -> dict[str, Any]:
    """Milliseconds for each new token of a batch, from a prompt of one token."""
    config = load_config([f"model={name}"]).model
    assert isinstance(config, BabyGPTConfig)
    model = jax.jit(lambda: make_model(config, vocab_size, start_key(0)))()
    prompt, key = np.zeros((batch, 1), np.int32), jax.random.key(0)
    actions: dict[str, Callable[[], Any]] = {"babyjax": lambda: generate(model, prompt, key, length)}
    if uncached:
        bare = WithoutCache(model)
        actions["without_cache"] = lambda: generate(bare, prompt, key, length)
    else:
        network = torch_gpt.TorchGPT.like(model, config).to(DEVICE).eval()
        on_device = torch.zeros((batch, 1), dtype=torch.long, device=DEVICE)
        actions["pytorch"] = lambda: network.generate(on_device, length).numpy(force=True)
    seconds = take_turns(rounds, **actions)
    ours = seconds.pop("babyjax")
    ((other, theirs),) = seconds.items()
    return {
        "model": name,
        "vocab_size": vocab_size,
        "batch": batch,
        "length": length,
        "beside": other,
        "babyjax_ms_per_token": 1e3 * ours / length,
        "other_ms_per_token": 1e3 * theirs / length,
        "ratio": theirs / ours,
    }


def random_text(vocab_size: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab_size, length).astype(np.int32)


def whole_run(split: Split, tokenizer: CharTokenizer) -> dict[str, Any]:
    """What gpt-tiny's recipe reaches: its loss on the whole validation split, each token from 33 tokens or more."""
    config, stride = load_config(["model=gpt-tiny"]), 32
    *_, (_, seconds, model) = train(config, jnp.asarray(split.train), tokenizer.vocab_size, [config.train.steps])
    loss = ContextEvaluator(split, tokenizer.byte_lengths, config.model.block_size, stride)(model, ["val"])["val"]
    return {
        "steps": config.train.steps,
        "seconds": seconds,
        "stride": stride,
        "tokens": loss.tokens,
        "val_nats_per_token": loss.per_token,
        "standard_error": loss.standard_error,
    }


def main() -> None:
    results: dict[str, Any] = provenance("experiments.gpt_speed")
    corpus = read_corpus(sys.argv[1])
    tokenizer = CharTokenizer.fit(corpus.text)
    split = split_tokens(tokenizer.encode(corpus.text))
    results |= {"corpus": corpus.name, "sha256": corpus.sha256}
    if ON_GPU:
        trained = [
            training(["model=babygpt-v12", "model.dtype=bfloat16"], split.train, tokenizer.vocab_size, 50, 5),
            training(["model=gpt2", "train.batch_size=32"], random_text(50_257, 1_000_000), 50_257, 10, 5),
        ]
    else:
        trained = [training(["model=gpt-tiny"], split.train, tokenizer.vocab_size, 10, 25)]
        results["gpt_tiny"] = whole_run(split, tokenizer)
    sampled = [
        sampling("gpt-tiny", 65, 1, 63, 10, uncached=False),
        sampling("gpt-tiny", 65, 16, 63, 10, uncached=False),
        sampling("babygpt-v12", 6104, 1, 128, 5, uncached=False),
        sampling("babygpt-v12", 6104, 16, 128, 5, uncached=False),
        sampling("babygpt-v12", 65, 1, 256, 3, uncached=True),
    ]
    results |= {"training": trained, "sampling": sampled}
    suffix = "_gpu" if ON_GPU else ""
    write_json(HERE / f"results{suffix}.json", results)
    (HERE / f"results{suffix}.md").write_text(table(results), encoding="utf-8")
    print(table(results))


def table(results: dict[str, Any]) -> str:
    peer = "PyTorch, compiled" if ON_GPU else "PyTorch eager"
    lines = [
        f"`{results['command']}`, {results['date']}, {results['machine']}, {results['device']}, "
        f"jax {results['versions']['jax']}, torch {results['versions']['torch']}",
        "",
        f"| training | batch | ms a step | {peer}, ms a step | ratio | tokens/s | of peak |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["training"]:
        share = row["model_flops_utilisation"]
        batch = " x ".join(map(str, row["batch"]))
        lines.append(
            f"| {' '.join(row['arguments'])} | {batch} | {row['babyjax_ms_per_step']:.1f} "
            f"| {row['pytorch_ms_per_step']:.1f} | {row['ratio']:.2f} x | {row['babyjax_tokens_per_second']:,.0f} "
            f"| {f'{share:.1%}' if share else 'unknown'} |"
        )
    lines += [
        "",
        "| sampling | batch | tokens | ms a token | beside | ms a token | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["sampling"]:
        beside = "PyTorch with a cache" if row["beside"] == "pytorch" else "ours without a cache"
        lines.append(
            f"| {row['model']}, V = {row['vocab_size']:,} | {row['batch']} | {row['length']} "
            f"| {row['babyjax_ms_per_token']:.3f} | {beside} | {row['other_ms_per_token']:.3f} | {row['ratio']:.1f} x |"
        )
    if "gpt_tiny" in results:
        run = results["gpt_tiny"]
        lines += [
            "",
            f"gpt-tiny on {results['corpus']}, {run['steps']:,} steps: val {run['val_nats_per_token']:.4f} "
            f"+-{run['standard_error']:.4f} nats per token over all {run['tokens']:,} (stride {run['stride']}), "
            f"{run['seconds']:.0f} s after compilation.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

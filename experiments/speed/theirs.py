"""The measurements of the other side: PyTorch eager (compiled on a GPU) and NumPy, as their users would write them."""

import os
from typing import Any

import numpy as np
import torch

from babyjax import CharTokenizer, load_config, presets, read_corpus, split_tokens
from babyjax.config import BabyGPTConfig
from experiments.peers import torch_gpt
from experiments.peers.torch_v1 import TorchV1
from experiments.speed.workers import Details, Prepare, serve

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def encode(path: str | None) -> tuple[np.ndarray, int]:
    """Return the token ids of a text file, and its vocabulary size."""
    assert path is not None
    text = read_corpus(path).text
    tokenizer = CharTokenizer.fit(text)
    return tokenizer.encode(text), tokenizer.vocab_size


def finish() -> Details:
    """Wait for the device."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return {}


def training_v1(options: list[str], steps: int):
    """`steps` training steps of v1 by the loop of the published script."""
    config = load_config(options)
    ids, vocab_size = encode(config.data.path)
    loop = TorchV1(split_tokens(ids).train, vocab_size, config)

    def run() -> Details:
        loop.train(steps)
        return finish()

    return run


def training_gpt(options: list[str], steps: int):
    """`steps` training steps by nanoGPT's loop, in the dtype of the config."""
    config = load_config(options)
    assert isinstance(config.model, BabyGPTConfig)
    ids, vocab_size = encode(config.data.path)
    network = torch_gpt.TorchGPT(config.model, config.model.vocab_size or vocab_size).to(DEVICE)
    rules = torch_gpt.optimizers(network, config.optimizer)
    data = torch.tensor(split_tokens(ids).train, dtype=torch.long, device=DEVICE)
    compiled = torch.compile(network) if DEVICE == "cuda" else network
    half = config.model.dtype == "bfloat16"

    def run() -> Details:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=half):
            torch_gpt.train(compiled, rules, config, data, steps)
        return finish()

    return run


def sampling(model: str, changes: dict[str, Any], vocab_size: int, batch: int, length: int):
    """Sample `length` tokens with a cache of keys and values."""
    network = torch_gpt.TorchGPT(presets[model].replace(**changes), vocab_size).to(DEVICE).eval()
    prompt = torch.zeros((batch, 1), dtype=torch.long, device=DEVICE)

    def run() -> Details:
        network.generate(prompt, length).numpy(force=True)
        return {}

    return run


def counting(path: str):
    """Count pairs of token ids with `np.bincount`."""
    ids, v = encode(path)

    def run() -> Details:
        np.bincount(ids[:-1] * v + ids[1:], minlength=v * v).reshape(v, v)
        return {}

    return run


MEASUREMENTS: dict[str, Prepare] = {
    "training_v1": training_v1,
    "training_gpt": training_gpt,
    "sampling": sampling,
    "counting": counting,
}

if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count() or 1)
    serve(MEASUREMENTS)

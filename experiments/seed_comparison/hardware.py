"""What this device can do, and how much of it the forward passes of both models reach at a size that fills it."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from babyjax import BabyGPT
from experiments.record import take_turns
from experiments.seed_comparison.scaling import CALLS, repeated
from experiments.seed_comparison.study import Effort


def hardware(effort: Effort) -> dict[str, Any]:
    """Measure a matrix product, a copy, and both forward passes on a full batch and on one token."""
    tokens = vocab_size = effort.hardware
    width, side, random = tokens // 16, tokens // 4, np.random.default_rng(0)
    ids = jnp.asarray(random.integers(0, vocab_size, (1, tokens)).astype(np.int32))
    in_order = jnp.arange(tokens, dtype=jnp.int32)[None]
    table = jnp.asarray(random.normal(size=(vocab_size, vocab_size)).astype(np.float32))
    model = BabyGPT.from_parameters(table[:, :width], table[:width], table[0])

    def forward(index, model, ids):
        return model((ids + index) % vocab_size)

    def gather(index, table, ids):
        return table[(ids + index) % vocab_size]

    seconds = take_turns(
        effort.rounds,
        product=repeated(lambda index, square: square @ (square + index), table[:side, :side]),
        copy=repeated(lambda index, table: table + index, table),
        forward=repeated(forward, model, ids),
        gather=repeated(gather, table, ids),
        gather_in_order=repeated(gather, table, in_order),
        forward_one=repeated(forward, model, ids[:, :1]),
        gather_one=repeated(gather, table, ids[:, :1]),
    )
    seconds = {name: each / CALLS for name, each in seconds.items()}
    flops, moved = 2 * tokens * vocab_size * width, 2 * 4 * tokens * vocab_size  # read and written
    peak, bandwidth = 2 * side**3 / seconds["product"], moved / seconds["copy"]
    return {
        "tokens": tokens,
        "vocab_size": vocab_size,
        "n_embd": width,
        "product_flops_per_second": peak,
        "copy_bytes_per_second": bandwidth,
        "forward_share_of_product": flops / seconds["forward"] / peak,
        "gather_share_of_copy": moved / seconds["gather"] / bandwidth,
        "random_over_ordered": seconds["gather"] / seconds["gather_in_order"],
        "forward_tokens_per_second": tokens / seconds["forward"],
        "gather_tokens_per_second": tokens / seconds["gather"],
        "forward_gain_of_batch": seconds["forward_one"] * tokens / seconds["forward"],
        "gather_gain_of_batch": seconds["gather_one"] * tokens / seconds["gather"],
    }

"""Token ids are checked on the host: on a device JAX silently wraps or drops an index that is out of range."""

import numpy as np
from jaxtyping import Shaped

from babyjax.errors import TokenError


def check_tokens(tokens: Shaped[np.ndarray, "*shape"], vocab_size: int) -> None:
    """Raises: TokenError if the ids are not integers in [0, vocab_size)."""
    if tokens.dtype.kind not in "iu":
        raise TokenError(f"token ids must be integers, got {tokens.dtype}")
    if tokens.size == 0:
        return
    # One pass: as unsigned, a negative id is a huge one.
    if int(tokens.view(tokens.dtype.str.replace("i", "u")).max()) >= vocab_size:
        worst = int(tokens.min()) if tokens.min() < 0 else int(tokens.max())
        raise TokenError(f"token id {worst} is outside the vocabulary of {vocab_size} tokens")

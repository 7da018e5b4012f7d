"""Token ids are checked on the host: on a device JAX silently wraps or drops an index out of range."""

import numpy as np
from jaxtyping import Integer

from babyjax.errors import TokenError


def check_tokens(tokens: Integer[np.ndarray, "*shape"], vocab_size: int) -> None:
    """Raises `TokenError` where an id is outside [0, vocab_size)."""
    if tokens.size == 0:
        return
    # One pass: as unsigned, a negative id is a huge one.
    if int(tokens.view(f"u{tokens.itemsize}").max()) >= vocab_size:
        worst = int(tokens.min()) if tokens.min() < 0 else int(tokens.max())
        raise TokenError(f"token id {worst} is outside the vocabulary of {vocab_size} tokens")

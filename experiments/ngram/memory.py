"""Peak memory of counting n-grams on many megabytes of Python source: `python -m experiments.ngram.memory 50 5`.

Prints, as JSON, the tokens and the peak memory of the whole process, Python, JAX and the text included.
"""

import json
import resource
import sys
import time
from pathlib import Path

import jax

from babyjax import CharTokenizer, estimate_ngram


def source_text(megabytes: float) -> str:
    """Return that much of the installed Python packages, in the order of their paths."""
    parts, size = [], 0
    for path in sorted(Path(jax.__file__).parents[1].glob("**/*.py")):
        parts.append(path.read_text(encoding="utf-8", errors="ignore"))
        size += len(parts[-1].encode("utf-8", "ignore"))
        if size >= megabytes * 1e6:
            break
    return "".join(parts)


def peak() -> int:
    """Return the most memory this process has held, in bytes."""
    scale = 1 if sys.platform == "darwin" else 1024
    return scale * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(megabytes: float, order: int) -> None:
    """Count and print."""
    text = source_text(megabytes)
    tokenizer = CharTokenizer.fit(text)
    tokens = tokenizer.encode(text)
    del text
    start = time.perf_counter()
    model = estimate_ngram(tokens, tokenizer.vocab_size, order)
    seconds = time.perf_counter() - start
    result = {"tokens": len(tokens), "vocab_size": tokenizer.vocab_size, "order": order, "ngrams": model.size}
    print(json.dumps(result | {"seconds": seconds, "bytes": peak()}))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))

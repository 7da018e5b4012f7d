"""What PPMd needs for the last tenth of a text after the rest: `python -m experiments.five_minutes.ppmd FILE`.

PPMd is adaptive: it predicts each byte and then counts it. Prints nats per character as `babyjax evaluate` does.
"""

import json
import math
import sys
from pathlib import Path

import pyppmd

ORDER = 6


def main() -> None:
    """Print the adaptive loss of the text that the first argument names."""
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    first = text[: int(0.9 * len(text))]
    whole, start = (
        len(pyppmd.compress(part.encode(), max_order=ORDER, mem_size=256 << 20, variant="I")) for part in (text, first)
    )
    nats = (whole - start) * 8 * math.log(2) / (len(text) - len(first))
    print(json.dumps({"adaptive": {"nats_per_token": nats}}))


if __name__ == "__main__":
    main()

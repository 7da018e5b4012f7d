"""How many seconds of two CPU cores to nanoGPT's published loss on tinyshakespeare?

    python -m experiments.speedrun tinyshakespeare.txt [NAME ...]
    python -m experiments.speedrun --report

nanoGPT's README has 1.4697 for its character model after three minutes of an A100. Rules and caveats are in results.md.
"""

from pathlib import Path

from experiments.five_minutes.__main__ import EVALUATE, MIX, NETWORK, NGRAM
from experiments.race import Entry, race
from experiments.speedrun.report import report

ENTRIES = {
    "mixture": Entry(
        "gpt-tiny with fewer steps, mixed with the n-gram",
        (
            f"{NGRAM} & {NETWORK} model=gpt-tiny train.steps=900 run_dir=network && wait",
            f"{MIX}network,ngram",
            f"{EVALUATE}mixture",
        ),
        verified=("mixture stride=32",),
    ),
    "network": Entry(
        "gpt-small",
        (f"{NETWORK} model=gpt-small run_dir=network", f"{EVALUATE}network"),
        verified=("network stride=32",),
    ),
}


if __name__ == "__main__":
    race(Path(__file__).parent, ENTRIES, report)

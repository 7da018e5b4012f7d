"""What can two CPU cores learn of tinyshakespeare in five minutes?

    python -m experiments.five_minutes tinyshakespeare.txt [NAME ...]
    python -m experiments.five_minutes --report

The rules are in results.md. To take part, add a row to ENTRIES; its commands may be any programs.
"""

from pathlib import Path

from experiments.five_minutes.report import report
from experiments.race import Entry, race

EVALUATE = "babyjax evaluate split=val stride=32 format=json run_dir="
# Evaluate at the end only, and there on few tokens: `babyjax evaluate` follows.
QUIET = "train.eval_interval=100000 train.eval_tokens=1000 checkpoint.interval=100000"
NETWORK = f"babyjax train data.path=text.txt {QUIET} train.seed={{seed}}"
NGRAM = "babyjax train data.path=text.txt model=ngram model.discounts=fitted run_dir=ngram"
MIX = "babyjax train data.path=text.txt model=mixture train.eval_tokens=1000 run_dir=mixture model.parts="
HALF = "model=gpt-small train.steps=2300"
ENTRIES = {
    "PPMd": Entry("PPMd variant I of order 6, by pyppmd", ("python -m experiments.five_minutes.ppmd text.txt",), (0,)),
    "Kneser-Ney": Entry(
        "the counted n-gram: order and discounts chosen on training text",
        (NGRAM, "babyjax evaluate split=val format=json run_dir=ngram adaptive=true"),
        (0,),
        ("ngram",),
    ),
    "gpt-tiny-2019": Entry(
        "GPT-2's architecture at nanoGPT's laptop size, 2,000 steps",
        (f"{NETWORK} model=gpt-tiny-2019 run_dir=network", f"{EVALUATE}network"),
        verified=("network stride=32",),
    ),
    "gpt-small": Entry(
        "one network",
        (f"{NETWORK} model=gpt-small train.steps=4300 run_dir=network", f"{EVALUATE}network"),
        verified=("network stride=32",),
    ),
    "ensemble": Entry(
        "two networks of about half the steps, trained side by side and mixed",
        (
            f"{NETWORK} {HALF} run_dir=a & {NETWORK}7 {HALF} run_dir=b && wait",
            f"{MIX}a,b",
            f"{EVALUATE}mixture",
        ),
        verified=("mixture stride=32",),
    ),
    "mixture": Entry(
        "one network mixed with the n-gram",
        (
            f"{NGRAM} & {NETWORK} model=gpt-small train.steps=3900 run_dir=network && wait",
            f"{MIX}network,ngram",
            f"{EVALUATE}mixture adaptive=true",
        ),
        verified=("mixture stride=32",),
    ),
}


if __name__ == "__main__":
    race(Path(__file__).parent, ENTRIES, report)

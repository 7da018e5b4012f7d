"""How fast is babyjax, beside what a PyTorch or NumPy user would write?

    python -m experiments.speed tinyshakespeare.txt songci.txt
    python -m experiments.speed --only v1 tinyshakespeare.txt

Measures every figure of `figures.py` and writes results.json and results.md beside this file; on a GPU results_gpu.json
and results_gpu.md. With `--only` or `--quick` the table is only shown, unless `--out` names a folder for it. Needs the
`bench` extra, and a system that can stop a process (not Windows).
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from babyjax import CharTokenizer, read_corpus
from experiments.record import provenance, write_json
from experiments.speed import report
from experiments.speed.figures import OURS, Plan, Text
from experiments.speed.workers import Side, take_turns

HERE = Path(__file__).parent
PARTS = ("v1", "gpt", "sampling", "counting", "evaluation", "commands", "counts", "runs")


def measure(paths: list[str], only: list[str], quick: bool) -> dict[str, Any]:
    """Measure every figure, or some parts, and show each as it is done."""
    corpora = [read_corpus(path) for path in paths]
    texts = [
        Text(str(Path(path).resolve()), CharTokenizer.fit(corpus.text).vocab_size)
        for path, corpus in zip(paths, corpora, strict=True)
    ]
    (machine,) = take_turns([Side(OURS, "machine", {})], 0)
    load, figures = [os.getloadavg()[0]], []
    for figure in Plan(texts, machine["gpu"], quick).figures():
        if not only or figure.part in only:
            sides = zip(figure.sides, take_turns(figure.sides, figure.rounds), strict=True)
            figures.append(figure._asdict() | {"sides": [{"label": side.label} | details for side, details in sides]})
            print("\n".join(report.rows(figures[-1])), flush=True)
    return provenance("experiments.speed", machine["device"]) | {
        "gpu": machine["gpu"],
        "load_average": [*load, os.getloadavg()[0]],
        "texts": {corpus.name: {"sha256": corpus.sha256, "characters": len(corpus.text)} for corpus in corpora},
        "figures": figures,
    }


def main() -> None:
    """Measure and record as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m experiments.speed")
    parser.add_argument("texts", nargs="*", help="UTF-8 text files")
    parser.add_argument("--only", choices=PARTS, action="append", default=[], help="measure this part; repeatable")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--out", type=Path, help="folder to write to (default: beside the script)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="only write results.md again, from a results.json")
    options = parser.parse_args()
    if bool(options.texts) == bool(options.report):
        parser.error("give text files, or --report FILE")
    if options.report:
        results = json.loads(options.report.read_text(encoding="utf-8"))
        report.write(results, options.report.with_suffix(".md"))
        return
    results = measure(options.texts, options.only, options.quick)
    print(f"\n{report.text(results)}")
    if options.out or not (options.only or options.quick):
        path = (options.out or HERE) / ("results_gpu.json" if results["gpu"] else "results.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, results)
        report.write(results, path.with_suffix(".md"))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the workers too
    main()

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
from pathlib import Path

from babyjax import CharTokenizer, read_corpus
from experiments.record import provenance, write_json
from experiments.speed import report
from experiments.speed.figures import OURS, Plan, Text
from experiments.speed.workers import Side, take_turns

HERE = Path(__file__).parent
PARTS = ("v1", "gpt", "sampling", "counting", "evaluation", "commands", "counts", "runs")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.speed")
    parser.add_argument("texts", nargs="*", help="UTF-8 text files")
    parser.add_argument("--only", choices=PARTS, help="measure one part")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--out", type=Path, help="folder to write to (default: beside the script)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="only write results.md again, from a results.json")
    options = parser.parse_args()
    if options.report:
        results = json.loads(options.report.read_text(encoding="utf-8"))
        report.write(results, options.report.with_suffix(".md"))
        return
    if not options.texts:
        parser.error("give at least one text file")
    texts = []
    for path in options.texts:
        corpus = read_corpus(path)
        texts.append((Text(str(Path(path).resolve()), CharTokenizer.fit(corpus.text).vocab_size), corpus))
    ((machine,),) = [take_turns([Side(OURS, "machine", {})], 0)]
    results = provenance("experiments.speed", machine["device"]) | {
        "texts": {corpus.name: {"sha256": corpus.sha256, "characters": len(corpus.text)} for _, corpus in texts},
        "load_average": [os.getloadavg()[0]],
        "figures": [],
    }
    for figure in Plan([text for text, _ in texts], machine["gpu"], options.quick).figures():
        if options.only in (None, figure.part):
            sides = zip(figure.sides, take_turns(figure.sides, figure.rounds), strict=True)
            measured = figure._asdict() | {"sides": [{"label": side.label} | details for side, details in sides]}
            results["figures"].append(measured)
            print("\n".join(report.rows(measured)), flush=True)
    results["load_average"].append(os.getloadavg()[0])
    print(f"\n{report.text(results)}")
    if options.out or not (options.only or options.quick):
        out = options.out or HERE
        out.mkdir(parents=True, exist_ok=True)
        name = "results_gpu.json" if machine["gpu"] else "results.json"
        write_json(out / name, results)
        report.write(results, (out / name).with_suffix(".md"))


if __name__ == "__main__":
    main()

"""How good is each rung of the ladder with one training budget, and is it better than the rung below?

    python -m experiments.reference tinyshakespeare.txt [RUNG ...]
    python -m experiments.reference --report

Every rung learns from the same number of tokens. `babyjax sweep` chooses its learning rate on the last tenth of the
training split and then trains it with five seeds; `babyjax compare` says whether it is better than the rung below.
What is measured already is kept: after Ctrl-C the same command continues.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import babyjax
from babyjax.counts.kneser_ney import losses_by_order
from experiments.record import Results, provenance, write_json
from experiments.reference.report import report

MODULE = "experiments.reference"
TOKENS, SEEDS = 5000 * 32 * 8, 5
CONSTANT, COSINE, MUON = "1e-3,3e-3,1e-2", "1e-3,2e-3,4e-3", "1e-2,2e-2,4e-2"
RUNGS = {
    "bigram": "",
    "babygpt": CONSTANT,
    "babygpt-v2-position": CONSTANT,
    "babygpt-v3-attention": CONSTANT,
    "babygpt-v4-multihead": CONSTANT,
    "babygpt-v5-feedforward": CONSTANT,
    "babygpt-v6-blocks": CONSTANT,
    "babygpt-v7-residual": CONSTANT,
    "babygpt-v8-projection": CONSTANT,
    "babygpt-v9-layernorm": CONSTANT,
    "babygpt-v10-dropout": CONSTANT,
    "gpt-tiny-2019": COSINE,
    "babygpt-v13-rotary": COSINE,
    "babygpt-v14-rmsnorm": COSINE,
    "babygpt-v15-swiglu": COSINE,
    "babygpt-v16-gqa": COSINE,
    "babygpt-v17-qknorm": COSINE,
    "gpt-tiny": MUON,
}
ORDERS = 9


def babyjax_command(*arguments: str) -> list[str]:
    """Return the command line of babyjax in this Python."""
    return [sys.executable, "-m", "babyjax", *arguments]


def climb(name: str, text: Path, tokens: int, work: Path) -> Results:
    """Choose the learning rate of a rung, train it with every seed, and verify its first, in a folder of `work`."""
    options = [f"model={name}", f"data.path={text}", f"run_dir={work / name}"]
    if not RUNGS[name]:
        subprocess.run(babyjax_command("train", *options), check=True)
        return {"rates": {}, "verified": verified(work / name)}
    config = babyjax.load_config(options)
    steps = tokens // (config.train.batch_size * config.model.window)
    quiet = (f"train.eval_interval={steps}", f"checkpoint.interval={steps}", "train.eval_tokens=")
    rates = f"optimizer.learning_rate={RUNGS[name]}"
    command = ("sweep", *options, rates, f"train.steps={steps}", f"train.seeds={SEEDS}", *quiet)
    subprocess.run(babyjax_command(*command), check=True)
    found = json.loads((work / name / "sweep.json").read_text(encoding="utf-8"))
    held_out = {trial["options"]["optimizer.learning_rate"]: trial["held_out"] for trial in found["trials"]}
    row = {"rates": held_out, "rate": found["best"]["optimizer.learning_rate"]}
    return row | {
        "parameters": babyjax.load_task(config).parameters,
        "batch": [steps, config.train.batch_size, config.model.window],
        "verified": verified(run_of(name, row, work) / "seed-0"),
    }


def verified(run: Path) -> bool:
    """Return whether a run passes the checks of `babyjax.verify`."""
    return answer("evaluate", f"run_dir={run}", "split=val", "verify=true")["verification"]["passed"]


def run_of(name: str, row: Results, work: Path) -> Path:
    """Return the folder that holds a run of a rung per seed."""
    return work / name / "winner" / f"optimizer.learning_rate={row['rate']}" if row["rates"] else work / name


def answer(*arguments: str) -> Results:
    """Return the JSON object that a command of babyjax prints, also if it ends with status 1."""
    command = babyjax_command(*arguments, "format=json")
    return json.loads(subprocess.run(command, check=False, stdout=subprocess.PIPE, encoding="utf-8").stdout)


def measure(text: Path, names: list[str], tokens: int, work: Path, kept: Results, keep: Callable[[], None]) -> None:
    """Train the rungs and compare each with the one below it that was measured. `keep` writes `kept`."""
    corpus = babyjax.read_corpus(text)
    results = kept.get(corpus.name, {})
    if (results.get("sha256"), results.get("tokens")) != (corpus.sha256, tokens):
        task = babyjax.load_task(babyjax.load_config([f"data.path={text}"]))
        losses = losses_by_order(*task.split, task.tokenizer.vocab_size)[:ORDERS]
        ngrams = {str(order): float(loss) for order, loss in enumerate(losses, 1)}
        results = {"sha256": corpus.sha256, "tokens": tokens, "vocab_size": task.tokenizer.vocab_size}
        results |= {"seeds": SEEDS, "ngrams": ngrams, "rungs": {}}
    kept[corpus.name], work = results, work / corpus.name
    for name in names:
        results["rungs"][name] = results["rungs"].get(name, {}) | climb(name, text, tokens, work)
        results["rungs"] = {rung: results["rungs"][rung] for rung in RUNGS if rung in results["rungs"]}
        keep()
    rungs = results["rungs"]
    for below, above in pairwise(rungs):
        if rungs[above].get("below") != below or above in names:
            found = answer("compare", *(str(run_of(name, rungs[name], work)) for name in (below, above)))
            for name, row in zip((below, above), found["runs"], strict=True):
                rungs[name] |= {key: row[key] for key in ("losses", "mean", "interval", "bits_per_byte")}
            verdict = found["comparisons"][0]
            rungs[above] |= {key: verdict[key] for key in ("verdict", "better", "difference", "half_width")}
            rungs[above] |= {"below": below, "tokens": found["tokens"], "provenance": provenance(MODULE)}
            print(f"{above}: {rungs[above]['mean']:.4f}, {verdict['verdict']}", flush=True)
            keep()


def main() -> None:
    """Measure, write results.json and report."""
    folder = Path(__file__).parent
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("text", nargs="?", type=Path, help="a UTF-8 text file")
    parser.add_argument("rungs", nargs="*", help="rungs to measure (default: all)")
    parser.add_argument("--report", action="store_true", help="rewrite text and pictures from results.json")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens to learn from, with repetitions")
    parser.add_argument("--work", type=Path, default=Path("checkpoints/reference"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=folder, help="folder to write to (default: beside the script)")
    options = parser.parse_args()
    if bool(options.text) == options.report:
        parser.error("give a text file, or --report")
    if odd := set(options.rungs) - set(RUNGS):
        parser.error(f"unknown rung: {min(odd)}")
    path = options.out / "results.json"
    results: Results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if options.text:
        options.out.mkdir(parents=True, exist_ok=True)
        names = [name for name in RUNGS if name in (options.rungs or RUNGS)]
        measure(options.text, names, options.tokens, options.work, results, lambda: write_json(path, results))
    report(results, options.out)


if __name__ == "__main__":
    main()

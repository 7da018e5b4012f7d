"""How good are stories after five minutes on two cores? The commands of docs/data.md, one after another.

    python -m experiments.corpora.stories tinyshakespeare.txt

The stories are parts of the text, of eight speeches each, as JSON lines.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments.corpora.__main__ import documents
from experiments.record import Results, origin, provenance, write_json

OPTIONS = ("data.tokenizer=bpe", "data.vocab_size=4096")
MODEL, STEPS = "gpt-small", 1500
TEXT = """\
# A model of stories

{number:,} stories ({bytes:,} bytes), a vocabulary of {vocabulary:,} byte pairs, gpt-small ({parameters:,} parameters)
trained for {steps:,} steps:

| command | seconds |
|:---|---:|
{rows}

| validation split | nats per token | bits per byte |
|:---|---:|---:|
| gpt-small | {nats:.4f} | {bits:.4f} |
| counted {order}-gram | {ngram:.4f} | {ngram_bits:.4f} |

A story that begins with "ROMEO:", by the last command:

```text
{story}
```

{origin}
"""


def command(*arguments: str) -> tuple[str, float]:
    """Run a babyjax command. Returns what it prints and the seconds it took."""
    start = time.perf_counter()
    run = subprocess.run([sys.executable, "-m", "babyjax", *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return run.stdout, time.perf_counter() - start


def measure(text: Path, steps: int) -> Results:
    """Prepare, train, evaluate and sample."""
    with tempfile.TemporaryDirectory() as name:
        path, run = Path(name, "stories.jsonl"), f"run_dir={name}/run"
        documents(text.read_text(encoding="utf-8"), 0, path)
        corpus, data = f"data.path={name}/prepared", (f"data.path={path}", *OPTIONS)
        _, preparing = command("prepare", *data, f"out={name}/prepared")
        _, training = command("train", f"model={MODEL}", corpus, *OPTIONS, f"train.steps={steps}", run)
        found, evaluating = command("evaluate", run, "format=json")
        story, sampling = command("sample", run, "prompt=ROMEO:", "temperature=0.8")
        what = json.loads(Path(name, "prepared", "corpus.json").read_text(encoding="utf-8"))
        losses = json.loads(found)
        return {
            "documents": what["documents"],
            "bytes": what["bytes"],
            "vocabulary": losses["vocab_size"],
            "steps": steps,
            "seconds": {"prepare": preparing, "train": training, "evaluate": evaluating, "sample": sampling},
            "val": losses["splits"]["val"],
            "order": losses["ngram_order"],
            "story": story.strip(),
            "parameters": parameters_of(Path(name, "run")),
        }


def parameters_of(run: Path) -> int:
    """Return the number of parameters of a run."""
    import jax

    import babyjax

    return sum(leaf.size for leaf in jax.tree.leaves(babyjax.load_run(run).model))


def report(results: Results, folder: Path) -> None:
    """Write stories.md."""
    val = results["val"]
    text = TEXT.format(
        number=results["documents"],
        bytes=results["bytes"],
        vocabulary=results["vocabulary"],
        parameters=results["parameters"],
        steps=results["steps"],
        rows="\n".join(f"| {name} | {seconds:.0f} |" for name, seconds in results["seconds"].items()),
        nats=val["nats_per_token"],
        bits=val["bits_per_byte"],
        order=results["order"],
        ngram=val["ngram_baseline"],
        ngram_bits=val["ngram_baseline"] / val["nats_per_token"] * val["bits_per_byte"],
        story=results["story"],
        origin=origin(results, "jax"),
    )
    (folder / "stories.md").write_text(text, encoding="utf-8")


def main() -> None:
    """Measure and report, or with `--report` report the record again."""
    parser = argparse.ArgumentParser(prog="python -m experiments.corpora.stories")
    parser.add_argument("text", type=Path, nargs="?", help="a UTF-8 text file")
    parser.add_argument("--report", action="store_true", help="rewrite stories.md from stories.json")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the record")
    options = parser.parse_args()
    if bool(options.text) == options.report:
        parser.error("give a text file, or --report")
    if options.text:
        found = provenance("experiments.corpora.stories") | measure(options.text, options.steps)
        write_json(options.out / "stories.json", found)
    report(json.loads((options.out / "stories.json").read_text(encoding="utf-8")), options.out)


if __name__ == "__main__":
    main()

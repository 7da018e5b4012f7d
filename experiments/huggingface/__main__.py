"""What does it cost to write a model for transformers and to read it back?

    python -m experiments.huggingface
    python -m experiments.huggingface --report

Random weights of gpt2's size, by default. Each measurement is a process of its own; its seconds include the import of
libraries. Memory is the highest resident size while it runs, less that at its start, over the size of the file, in a
process that did the same with a tiny model before: neither libraries nor a model in memory are counted.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import jax

import babyjax
from babyjax.data.subwords import SubwordTokenizer, tokenizer_json
from babyjax.export import export
from experiments.record import origin, provenance, write_json

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(line: str) -> int:
    """Return a line of this process's memory in bytes: VmRSS, or VmHWM for the highest since `CLEAR`."""
    return next(int(row.split()[1]) * 1024 for row in STATUS.read_text().splitlines() if row.startswith(line))


def tokenizer(size: int) -> SubwordTokenizer:
    """Return a tokenizer with so many tokens."""
    characters = "".join(map(chr, range(0x4E00, 0x4E00 + min(size, 20_000))))
    return SubwordTokenizer.read(tokenizer_json(babyjax.CharTokenizer(characters)))


def measure(what: str, config: babyjax.BabyGPTConfig, folder: Path) -> dict[str, Any]:
    """Prepare, then measure one of: save, export, import."""
    jax.device_put(0).block_until_ready()
    assert config.vocab_size is not None
    vocab_size = config.vocab_size
    model = None
    if what in ("save", "run"):
        model = jax.jit(lambda key: babyjax.BabyGPT(config, vocab_size, key))(jax.random.key(0))
        jax.block_until_ready(model)
    if what == "run" and model is not None:  # not measured: what export reads
        babyjax.save_run(model, tokenizer(vocab_size), folder / "run")
        return {}
    CLEAR.write_text("5")
    before = resident("VmRSS")
    start = time.perf_counter()
    if what == "save":
        assert isinstance(model, babyjax.BabyGPT)
        babyjax.save_huggingface(model, tokenizer(vocab_size), folder / "saved")
    elif what == "export":
        export(str(folder / "run"), out=str(folder / "exported"))
    else:
        model, _ = babyjax.load_huggingface(folder / "exported")
    seconds = time.perf_counter() - start
    size = (folder / ("saved" if what == "save" else "exported") / "model.safetensors").stat().st_size
    return {"seconds": seconds, "memory": (resident("VmHWM") - before) / size, "bytes": size}


def measure_all(preset: str, rounds: int) -> dict[str, Any]:
    """Measure each in fresh processes. Returns the medians."""
    results: dict[str, dict[str, list[float]]] = {what: {} for what in ("save", "export", "import")}
    for _, key in product(range(rounds), ("seconds", "memory")):
        with tempfile.TemporaryDirectory() as folder:
            for what in ("save", "run", "export", "import"):
                warmed = ["--warm"] * (key == "memory")
                command = [sys.executable, "-m", "experiments.huggingface", "--one", what, preset, folder, *warmed]
                output = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
                if what != "run":
                    found = json.loads(output.splitlines()[-1])
                    results[what].setdefault(key, []).append(found[key])
                    results[what]["bytes"] = [found["bytes"]]
    medians = {what: {key: median(values) for key, values in each.items()} for what, each in results.items()}
    return {"preset": preset, "rounds": rounds, **medians}


def report(results: dict[str, Any], folder: Path) -> None:
    """Write results.md."""
    names = {
        "save": "`save_huggingface`, the model in memory",
        "export": "`babyjax export`, from a run, which is read and verified",
        "import": "`load_huggingface`",
    }
    rows = [
        f"| {title} | {results[what]['seconds']:.2f} | {round(results[what]['memory'], 2) + 0.0:.2f} |"
        for what, title in names.items()
    ]
    lines = [
        "# Hugging Face directories",
        "",
        f"Weights of {results['preset']}'s size, a file of {results['save']['bytes'] / 1e6:,.0f} MB; median of "
        f"{results['rounds']} processes.",
        "",
        "| | seconds | memory added, over the file's size |",
        "|---|---:|---:|",
        *rows,
        "",
        origin(results, "jax"),
    ]
    (folder / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Measure and report."""
    folder = Path(__file__).parent
    parser = argparse.ArgumentParser(prog="python -m experiments.huggingface")
    parser.add_argument("--preset", default="gpt2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--report", action="store_true", help="rewrite the text from results.json")
    parser.add_argument("--out", type=Path, default=folder, help="folder to write to (default: beside the script)")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--warm", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        what, preset, scratch = options.one
        config = babyjax.presets[preset].replace(dtype="float32")
        if options.warm:
            tiny = config.replace(n_layer=1, n_embd=config.n_head, block_size=8)
            with tempfile.TemporaryDirectory() as folder_of_tiny:
                for each in ("save", "run", "export", "import"):
                    measure(each, tiny, Path(folder_of_tiny))
        print(json.dumps(measure(what, config, Path(scratch))))
        return
    if not options.report:
        results = provenance("experiments.huggingface") | measure_all(options.preset, options.rounds)
        write_json(options.out / "results.json", results)
    report(json.loads(((folder if options.report else options.out) / "results.json").read_text()), options.out)


if __name__ == "__main__":
    main()

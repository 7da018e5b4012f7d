"""Does a run have the same losses on one device, on eight, and in two processes of four?

    python -m experiments.processes

Trains one small network on virtual CPU devices, with several divisions of the same steps, and compares the losses of
all steps. Also how much of a larger network's state a device holds. Writes results.json and results.md.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from experiments.record import Results, origin, provenance, write_json

HERE = Path(__file__).parent
OPTIONS = (
    *("model=babygpt-v14-rmsnorm", "model.n_embd=64", "model.n_head=2", "model.n_layer=2", "model.unroll=1"),
    *("model.block_size=16", "data=synthetic", "data.length=20000", "train.batch_size=16"),
)
# Processes, devices of each, and how the state is divided; the last twice, to compare bytes.
DIVISIONS = ((1, 1, "data"), (1, 8, "data"), (1, 8, "fsdp"), (2, 4, "data"), (2, 4, "fsdp"), (2, 4, "fsdp"))
STATE = """
import sys
import jax
import babyjax
from babyjax.training.devices import data_mesh
from experiments.ahead_of_time.__main__ import compile_step

options = ["model=gpt2", "model.vocab_size=4096", "model.n_embd=512", "model.n_head=8", "model.n_layer=10"]
options += ["model.unroll=1", "model.block_size=64", "train.batch_size=8"]
found = {kind: compile_step(options, data_mesh(8), kind, tokens=4096) for kind in ("data", "fsdp")}
print(found["data"]["parameters"], *(found[kind]["argument_bytes"] for kind in ("data", "fsdp")))
"""


def environment(devices: int) -> dict[str, str]:
    """Return the environment of a process with some CPU devices."""
    return {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start(
    processes: int,
    devices: int,
    arguments: list[str],
    own: Sequence[str] = (),
    program: Sequence[str] = ("-m", "babyjax", "train"),
) -> list[subprocess.Popen[str]]:
    """Start `babyjax train` in one process or in several that train together, each with some devices.

    `own` has one more argument for each process. `program` is what Python runs.
    """
    command = [sys.executable, *program, *arguments]
    port, commands = free_port(), [command]
    if processes > 1:
        together = [f"distributed.coordinator=localhost:{port}", f"distributed.processes={processes}"]
        commands = [[*command, *together, f"distributed.process={process}"] for process in range(processes)]
        commands = [[*each, *more] for each, more in zip_longest(commands, ([one] for one in own), fillvalue=[])]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen(each, env=environment(devices), **pipes) for each in commands]


def finish(started: list[subprocess.Popen[str]], seconds: float | None = None) -> list[tuple[int, str, str]]:
    """Wait for processes. Returns the status, output and errors of each. Raises: TimeoutExpired after some seconds."""
    try:
        ended = [(each, *each.communicate(timeout=seconds)) for each in started]
        return [(each.returncode, out, errors) for each, out, errors in ended]
    finally:
        for each in started:
            each.kill()


def losses_of(run: Path) -> list[float]:
    """Return the loss of every step of a run, in nats per token."""
    rows = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(row)["train_loss"] for row in rows]


def furthest(ours: list[float], theirs: list[float]) -> float:
    """Return the largest difference between the losses of two runs, relative to the second."""
    return max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))


def measure(work: Path, steps: int) -> Results:
    """Train with each division, in folders of `work`, and compile the larger network."""
    arguments = [*OPTIONS, f"train.steps={steps}", f"train.eval_interval={steps}", "train.eval_tokens=1000"]
    rows, runs = [], []
    for index, (processes, devices, mesh) in enumerate(DIVISIONS):
        run = work / str(index)
        for status, _, errors in finish(
            start(processes, devices, [*arguments, f"train.mesh={mesh}", f"run_dir={run}"])
        ):
            if status:
                raise SystemExit(errors)
        runs.append(run)
        row = {"processes": processes, "devices": devices, "mesh": mesh}
        rows.append(row | {"furthest": furthest(losses_of(run), losses_of(runs[0]))})
        print(rows[-1], flush=True)
    same = [run.joinpath("metrics.jsonl").read_bytes() for run in runs[-2:]]
    ran = subprocess.run([sys.executable, "-c", STATE], env=environment(8), capture_output=True, text=True, check=True)
    parameters, whole, share = map(int, ran.stdout.split())
    return {
        "steps": steps,
        "rows": rows,
        "same_bytes": same[0] == same[1],
        "state": {"parameters": parameters, "data": whole, "fsdp": share},
    }


def text(results: Results) -> str:
    """Return the report as Markdown."""
    state, same = results["state"], "the same bytes" if results["same_bytes"] else "OTHER BYTES"
    return "\n".join(
        [
            "# The same run on other devices",
            "",
            f"The largest relative difference of the training loss over {results['steps']} steps to the run on one "
            "device.",
            "",
            "| processes | devices of each | train.mesh | largest difference |",
            "|---:|---:|---|---:|",
            *(
                f"| {row['processes']} | {row['devices']} | {row['mesh']} | {row['furthest']:.1e} |"
                for row in results["rows"]
            ),
            "",
            f"The last row is a repetition of the one before, and its losses have {same}.",
            "",
            f"The step of a network of {state['parameters'] / 1e6:.1f}M parameters, compiled for eight CPU devices, "
            f"takes {state['data'] / 2**20:.0f} MiB of",
            f"arguments per device with `train.mesh=data` and {state['fsdp'] / 2**20:.0f} MiB with `fsdp`: "
            f"{state['data'] / state['fsdp']:.1f} times less.",
            "",
            origin(results, "jax"),
            "",
        ]
    )


def main() -> None:
    """Measure, show and record."""
    parser = argparse.ArgumentParser(prog="python -m experiments.processes")
    parser.add_argument("--steps", type=int, default=300, help="steps of each run (default: 300)")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        results = provenance("experiments.processes") | measure(Path(work), options.steps)
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "results.json", results)
    (options.out / "results.md").write_text(text(results), encoding="utf-8")


if __name__ == "__main__":
    main()

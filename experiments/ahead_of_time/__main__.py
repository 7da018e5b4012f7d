"""Does a training step fit devices that are not here? Compile it for them and read the compiler's plan.

    pip install --no-deps --target tpu libtpu && PYTHONPATH=tpu python -m experiments.ahead_of_time

XLA's compiler for TPUs is a package that needs no TPU. Writes results.json and results.md beside this file. The plan
tells memory and communication, not speed.
"""

import argparse
import os
import re
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # with the package, JAX would look for a TPU

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

import babyjax
from babyjax.training.devices import bytes_of, program_memory, replicated, shardings
from babyjax.training.optimizer import make_optimizer
from babyjax.training.step import Hyper, init_state, make_advance, sum_nats_in_one_pass
from experiments.record import origin, provenance, write_json

HERE = Path(__file__).parent
TARGET, HBM = "v5e:2x4", 15.75 * 2**30  # bytes of memory that a program can use on each
TOKENS = 1 << 20
RUNS = {
    "gpt2": ["model=gpt2", "train.batch_size=64", "model.unroll=1", "model.remat=true"],
    "gpt2-xl": ["model=gpt2-xl", "train.batch_size=32", "model.remat=true"],
}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def mesh_of(target: str) -> Mesh:
    """Return a mesh of devices that are not here. Raises: RuntimeError if their compiler is not installed."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name=target)
    return Mesh(np.array(topology.devices), ("data",), axis_types=(AxisType.Auto,))


def compile_step(options: list[str], mesh: Mesh, kind: str, tokens: int = TOKENS) -> dict[str, Any]:
    """Compile a training step for the devices of `mesh`. Returns its memory in bytes per device and what it sends."""
    config = babyjax.load_config([*options, f"train.mesh={kind}"])
    network: Any = config.model
    optimizer = partial(make_optimizer, config.optimizer, config.train.steps)
    key = jax.random.key(0)
    model = jax.eval_shape(lambda key: babyjax.make_model(network, network.vocab_size or 256, key), key)
    state = jax.eval_shape(lambda model: init_state(model, optimizer(1.0)), model)
    placed = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state,
        shardings(state, mesh, kind),
    )
    text = jax.ShapeDtypeStruct((tokens,), np.int32, sharding=replicated(mesh))
    sizes = (config.train.batch_size, network.block_size)
    advance = make_advance(optimizer, *sizes, mesh, kind, nats=sum_nats_in_one_pass)
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        program = advance.lower(placed, text, 1, Hyper(0, 1.0)).compile()
    plan, listing = program.memory_analysis(), program.as_text()
    assert plan is not None, "this compiler plans memory"
    assert listing is not None, "this compiler shows its program"
    return {
        "options": options,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model)),
        "state_bytes": bytes_of(state),
        "mesh": kind,
        "devices": mesh.size,
        "argument_bytes": plan.argument_size_in_bytes,
        "temporary_bytes": plan.temp_size_in_bytes,
        "bytes": program_memory(program),
        "collectives": Counter(re.findall(rf" ({'|'.join(COLLECTIVES)})(?:-start)?\(", listing)),
        "compilation_seconds": time.perf_counter() - start,
    }


def row(found: dict[str, Any]) -> str:
    """Return a row of the table."""
    name, *options = found["options"]
    start = f"| {name.removeprefix('model=')}, {' '.join(options)} | {found['mesh']} |"
    if "error" in found:
        return f"{start} | | | no, the compiler gives up | |"
    gibibytes = [f"{found[key] / 2**30:.2f}" for key in ("argument_bytes", "temporary_bytes", "bytes")]
    fits = "yes" if found["bytes"] <= HBM else "no"
    sent = ", ".join(f"{count} {name}" for name, count in sorted(found["collectives"].items()))
    return f"{start} {' | '.join(gibibytes)} | {fits} | {sent} |"


def text(results: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    return "\n".join(
        [
            "# Compiled for devices that are not here",
            "",
            f"A training step of windows of 1,024 tokens, compiled for a TPU {results['target']}, eight chips of "
            f"{HBM / 2**30:g} GiB each. GiB per",
            "chip, by the compiler's plan. `data`: each chip holds the whole state. `fsdp`: each holds a share.",
            "",
            "| what | train.mesh | arguments | temporary | in all | fits | sends, in the program |",
            "|---|---|---:|---:|---:|---|---|",
            *map(row, results["steps"]),
            "",
            origin(results, "jax"),
            "",
        ]
    )


def main() -> None:
    """Compile, show and record."""
    parser = argparse.ArgumentParser(prog="python -m experiments.ahead_of_time")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    options = parser.parse_args()
    mesh, steps = mesh_of(TARGET), []
    for arguments in RUNS.values():
        for kind in ("data", "fsdp"):
            try:
                found = compile_step(arguments, mesh, kind)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                found = {"options": arguments, "mesh": kind, "error": str(error).splitlines()[0]}
            steps.append(found)
            print(row(found), flush=True)
    results = provenance("experiments.ahead_of_time", f"for TPU {TARGET}") | {"target": TARGET, "steps": steps}
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "results.json", results)
    (options.out / "results.md").write_text(text(results), encoding="utf-8")


if __name__ == "__main__":
    main()

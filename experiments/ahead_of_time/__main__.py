"""Does a training step fit devices that are not here? Compile it for them and read the compiler's plan.

    pip install --no-deps --target tpu libtpu && PYTHONPATH=tpu python -m experiments.ahead_of_time tpu
    pip install 'jax[cuda12]' && python -m experiments.ahead_of_time h100 h100s

XLA's compilers for TPUs and GPUs are packages that need neither. Writes results.json and results.md beside this file,
and keeps the results for other targets. The plan tells memory and communication, not speed.
"""

import argparse
import json
import math
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"  # with the package, JAX would look for a TPU

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

import babyjax
from babyjax.config import Config
from babyjax.models.ops import compiled_for
from babyjax.training.devices import bytes_of, program_memory, replicated, shardings
from babyjax.training.optimizer import make_optimizer
from babyjax.training.step import Hyper, init_state, make_advance, sum_nats_in_one_pass
from experiments.record import origin, provenance, write_json

HERE = Path(__file__).parent
TOKENS = 1 << 20
# XLA's description of a card (GpuTargetConfigProto, in text form).
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 l2_cache_size: 52428800
  device_memory_size: 84942979072 memory_bandwidth: 3352320000000
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 patch: 0 }
runtime_version { major: 12 minor: 9 patch: 0 }
"""


class Target(NamedTuple):
    """Devices that are not here, and the bytes of memory that a program can use on each."""

    name: str
    memory: float
    topology: dict[str, str]  # what JAX calls them


TARGETS = {
    "tpu": Target("8 x TPU v5e", 15.75 * 2**30, {"platform": "tpu", "topology_name": "v5e:2x4"}),
    **{
        name: Target(
            f"{count} x H100",
            0.95 * 84942979072,
            {"platform": "cuda", "topology_name": "H100", "topology": f"1x1x{count}", "target_config": H100},
        )
        for name, count in (("h100", 1), ("h100s", 8))
    },
}
BFLOAT16 = ("model=gpt2", "model.dtype=bfloat16")
# What is compiled for which target, with the state whole on each device or divided.
STEPS = (
    ("tpu", ("model=gpt2", "train.batch_size=64", "model.unroll=1", "model.remat=true"), ("data", "fsdp")),
    ("tpu", ("model=gpt2-xl", "train.batch_size=32", "model.remat=true"), ("data", "fsdp")),
    ("h100", (*BFLOAT16, "train.batch_size=16", "model.attention=xla"), ("data",)),
    ("h100", (*BFLOAT16, "train.batch_size=16", "model.attention=cudnn"), ("data",)),
    ("h100s", (*BFLOAT16, "train.batch_size=128", "model.attention=cudnn"), ("data", "fsdp")),
)
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
FUSED = {"forward": r"__cudnn\$fmhaSoftmax\"", "backward": r"__cudnn\$fmhaSoftmaxBackward\""}


def mesh_of(target: str) -> Mesh:
    """Return a mesh of devices that are not here. Raises: RuntimeError if their compiler is not installed."""
    topology = topologies.get_topology_desc(**TARGETS[target].topology)
    return Mesh(np.array(topology.devices).reshape(-1), ("data",), axis_types=(AxisType.Auto,))


def compile_step(options: Sequence[str], mesh: Mesh, kind: str, tokens: int = TOKENS) -> dict[str, Any]:
    """Compile a training step for the devices of `mesh`.

    Returns its memory in bytes per device, what it sends, how many numbers the largest gathered array, the largest
    parameter and the activations of a batch in one place have, and its calls of fused attention.
    """
    with compiled_for(mesh.devices.flat[0]):
        return _compile(babyjax.load_config([*options, f"train.mesh={kind}"]), list(options), mesh, tokens)


def _compile(config: Config, options: list[str], mesh: Mesh, tokens: int) -> dict[str, Any]:
    kind = config.train.mesh
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
        "largest_gathered": largest_gathered(listing),
        "largest_parameter": max(leaf.size for leaf in jax.tree.leaves(model)),
        "activations": math.prod(sizes) * network.n_embd,
        "attention": {name: len(re.findall(call, listing)) for name, call in FUSED.items()},
        "compilation_seconds": time.perf_counter() - start,
    }


def largest_gathered(listing: str) -> int:
    """Return how many numbers the largest array has that a program gathers, 0 if it gathers none."""
    lines = re.findall(r"= (.*?) all-gather(?:-start)?\(", listing)
    shapes = [shape for line in lines for shape in re.findall(r"\w\[([\d,]*)\]", line)]
    return max((math.prod(int(size) for size in shape.split(",") if size) for shape in shapes), default=0)


def atomics(folder: Path) -> dict[str, int]:
    """Return the atomic instructions in the PTX that XLA left in a folder, which is then removed from it.

    One with "cas" is part of a loop for each addition.
    """
    found: Counter[str] = Counter()
    for path in folder.glob("*.ptx"):
        found.update(re.findall(r"\batom\.[\w.]+", path.read_text(encoding="utf-8")))
        path.unlink()
    return found


def measure(name: str) -> dict[str, Any]:
    """Compile all steps for a target."""
    target, mesh, steps = TARGETS[name], mesh_of(name), []
    for arguments, kind in ((each[1], kind) for each in STEPS if each[0] == name for kind in each[2]):
        try:
            found = compile_step(arguments, mesh, kind)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            found = {"options": list(arguments), "mesh": kind, "error": str(error).splitlines()[0]}
        steps.append(found)
        print(row(found, target.memory), flush=True)
    device = f"for {target.name}"
    return provenance("experiments.ahead_of_time", device) | {"memory": target.memory, "steps": steps}


def row(found: dict[str, Any], memory: float) -> str:
    """Return a row of the table, of devices with some bytes of memory."""
    name, *options = found["options"]
    start = f"| {name.removeprefix('model=')}, {' '.join(options)} | {found['mesh']} |"
    if "error" in found:
        return f"{start} | | | no, the compiler gives up | | |"
    gibibytes = [f"{found[key] / 2**30:.2f}" for key in ("argument_bytes", "temporary_bytes", "bytes")]
    fits = "yes" if found["bytes"] <= memory else "no"
    sent = ", ".join(f"{count} {name}" for name, count in sorted(found["collectives"].items()))
    fused = " + ".join(map(str, found["attention"].values())) if any(found["attention"].values()) else ""
    return f"{start} {' | '.join(gibibytes)} | {fits} | {sent} | {fused} |"


def text(results: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = [
        "# Compiled for devices that are not here",
        "",
        "A training step of windows of 1,024 tokens, compiled for devices that this machine does not have. GiB per",
        "device, by the compiler's plan. `data`: each device holds the whole state. `fsdp`: each holds a share. Fused:",
        "calls of cuDNN's fused attention in the program, forward and backward.",
    ]
    for name, found in results.items():
        steps = found["steps"]
        lines += [
            "",
            f"## {TARGETS[name].name}, {found['memory'] / 2**30:.2f} GiB each",
            "",
            "| what | train.mesh | arguments | temporary | in all | fits | sends, in the program | fused |",
            "|---|---|---:|---:|---:|---|---|---|",
            *(row(step, found["memory"]) for step in steps),
            "",
        ]
        for step in steps:
            if step.get("largest_gathered"):
                lines += [
                    f"{step['options'][0].removeprefix('model=')}: the largest array that is gathered has "
                    f"{step['largest_gathered']:,} numbers, the largest parameter {step['largest_parameter']:,}, the "
                    f"activations of a batch in one place {step['activations']:,}.",
                    "",
                ]
        if found.get("atomics"):
            counted = ", ".join(f"{count} `{each}`" for each, count in sorted(found["atomics"].items()))
            lines += [f"Atomic instructions, which add up the gradient of the embedding: {counted}.", ""]
            if any(".cas." in each for each in found["atomics"]):
                lines += [
                    "With `cas` each addition is a loop: XLA's of jax 0.10.2 and 0.11.0 is slow (jax issue 38806).",
                    "",
                ]
        lines += [origin(found, "jax")]
    return "\n".join([*lines, ""])


def main() -> None:
    """Compile, show and record."""
    parser = argparse.ArgumentParser(prog="python -m experiments.ahead_of_time")
    parser.add_argument("targets", nargs="*", help=f"any of {', '.join(TARGETS)}; none: rewrite the report")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    options = parser.parse_args()
    if odd := set(options.targets) - set(TARGETS):
        parser.error(f"unknown target: {min(odd)}")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "results.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    with tempfile.TemporaryDirectory() as work:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={work}"  # for the PTX of a GPU
        for name in options.targets:
            results[name] = measure(name) | {"atomics": atomics(Path(work))}
    results = {name: results[name] for name in TARGETS if name in results}
    write_json(path, results)
    (options.out / "results.md").write_text(text(results), encoding="utf-8")


if __name__ == "__main__":
    main()

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec, SingleDeviceSharding

from babyjax.training.devices import (
    PEAK_FLOPS,
    bytes_of,
    bytes_per_device,
    data_mesh,
    fully_sharded,
    peak_flops,
    sharded,
    shardings,
)


def test_what_one_device_has_knows_no_mesh():
    mesh = data_mesh(1)
    places = shardings({"kernel": jax.ShapeDtypeStruct((64, 4096), jnp.float32)}, mesh, "fsdp")
    for place in (sharded(mesh, "data"), places["kernel"]):
        assert place == SingleDeviceSharding(jax.devices()[0])
    assert sharded(AbstractMesh((8,), ("data",)), "data").spec == PartitionSpec("data")


def test_a_peak_is_known_or_not():
    assert peak_flops("NVIDIA H200") == PEAK_FLOPS["H200"]
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("TPU v5p") == 459e12
    assert peak_flops("NVIDIA L4") == 121e12
    assert peak_flops("NVIDIA L40S") is None
    assert peak_flops("cpu") is None


@pytest.mark.parametrize(
    ("kind", "peak"), [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 NVL", 835e12)]
)
def test_the_cards_named_h100_have_peaks_of_their_own(kind, peak):
    assert peak_flops(kind) == peak


@pytest.mark.parametrize(
    ("name", "shape", "spec"),
    [
        ("model/blocks/attention/query/kernel", (12, 768, 64), (None, "data")),
        ("model/blocks/feed_forward/hidden/kernel", (12, 768, 3072), (None, None, "data")),
        ("rest/0/mu/blocks/attention_norm/scale", (8, 768), (None, "data")),  # never the blocks
        ("rest/0/mu/token_embedding/embedding", (50257, 768), (None, "data")),
        ("model/lm_head/kernel", (768, 50304), (None, "data")),
        ("model/lm_head/bias", (50257,), ()),
        ("model/norm/scale", (768,), ()),  # small
        ("step", (), ()),
        ("model/blocks/x", (8, 4095), ()),
    ],
)
def test_the_longest_axis_that_devices_divide_is_split_but_not_that_of_blocks(name, shape, spec):
    mesh = AbstractMesh((8,), ("data",))
    assert fully_sharded(name, shape, mesh).spec == PartitionSpec(*spec)


def test_a_share_of_a_state_is_counted_in_bytes():
    mesh = AbstractMesh((8,), ("data",))
    tree = {"kernel": jax.ShapeDtypeStruct((64, 4096), jnp.float32), "bias": jax.ShapeDtypeStruct((64,), jnp.bfloat16)}
    assert bytes_per_device(tree, shardings(tree, mesh, "fsdp")) == 64 * 4096 * 4 // 8 + 128
    assert bytes_per_device(tree, shardings(tree, mesh, "data")) == bytes_of(tree) == 64 * 4096 * 4 + 128


STEP = """
import sys
from dataclasses import replace
import jax, numpy as np
import babyjax
from babyjax.evaluation import losses as evaluation
from babyjax.runs.array_digest import digest_of
from babyjax.training import gradient
from babyjax.trees import named_arrays

places, to_devices = [], evaluation.to_devices
evaluation.to_devices = lambda array, where: places.append(where) or to_devices(array, where)
options = ["model=babygpt-v9-layernorm", "model.n_embd=128", "model.n_head=8", "model.n_layer=2", "model.unroll=1"]
options += ["train.batch_size=8", "train.steps=3"]
sizes, losses = {}, {}
for kind, on_disk in (("data", False), ("fsdp", False), ("fsdp", True), ("data", True)):
    programs = []
    compiled = gradient._compiled
    gradient._compiled = lambda *arguments: programs.append(compiled(*arguments)) or programs[-1]
    config = babyjax.load_config([*options, "data=synthetic", "data.length=2000", f"train.mesh={kind}"])
    task = babyjax.load_task(config)
    if on_disk:
        gradient.ON_DEVICE = 0
        task.split.train.astype(np.uint8).tofile(sys.argv[1])
        task = replace(task, split=task.split._replace(train=np.memmap(sys.argv[1], np.uint8, "r")))
    trainer = babyjax.make_trainer(config, task)
    assert trainer._from_file == on_disk
    events = list(trainer.run(trainer.init()))
    losses[kind, on_disk] = np.concatenate([event.train_losses for event in events])
    places.clear()
    model = events[-1].state.model
    spread, alone = (task.evaluate(each, ["val"])["val"] for each in (model, jax.tree.map(np.asarray, model)))
    assert places and all(place.shard_shape((8, 1)) == (1, 1) for place in places)
    np.testing.assert_allclose(spread.per_token, alone.per_token, rtol=1e-6)
    digest = digest_of(named_arrays(model))
    assert digest == digest_of(jax.tree.map(np.asarray, named_arrays(model)))
    gradient._compiled = compiled
    sizes.setdefault(kind, programs[0].memory_analysis().argument_size_in_bytes)
    gathered = programs[0].as_text().count(" all-gather(")
    assert bool(gathered) == (kind == "fsdp"), gathered
for found in losses.values():
    np.testing.assert_allclose(found, losses["data", False], rtol=1e-5)
print(sizes["data"] / sizes["fsdp"])
"""


@pytest.mark.slow
def test_split_states_take_a_share_of_the_memory_and_train_alike_from_memory_and_from_a_file(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", STEP, str(tmp_path / "tokens.bin")],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert float(ran.stdout) > 6

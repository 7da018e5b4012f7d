import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from babyjax.training.devices import data_mesh
from experiments.ahead_of_time.__main__ import compile_step, largest_gathered, row, text

ROOT = Path(__file__).parents[2]
COMPILE = """
import json, sys
from experiments.ahead_of_time.__main__ import STEPS, compile_step, mesh_of

target, number, kind = sys.argv[1:]
print(json.dumps(compile_step(STEPS[int(number)][1], mesh_of(target), kind)))
"""


def compiled(target, number, kind, **environment):
    """What a process finds that compiles a step of the experiment."""
    command = [sys.executable, "-c", COMPILE, target, str(number), kind]
    ran = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_a_step_is_compiled_from_shapes_alone():
    found = compile_step(
        ["model=gpt2", "model.n_layer=1", "model.n_embd=24", "train.batch_size=2"], data_mesh(1), "fsdp", 2000
    )
    assert (found["devices"], found["collectives"]) == (1, {})
    assert found["state_bytes"] + 4 * 2000 <= found["argument_bytes"] <= found["bytes"]
    assert found["attention"] == {"forward": 0, "backward": 0}
    shown = row(found, 2**30)
    assert shown.startswith("| gpt2, model.n_layer=1 model.n_embd=24 train.batch_size=2 | fsdp | 0.0")
    assert "| yes |" in shown
    assert "| no |" in row(found, found["bytes"] - 1)


def test_gathered_arrays_are_found_in_a_program():
    listing = """
  %all-gather.1 = f32[8,64]{1,0} all-gather(%x), channel_id=1
  %all-gather-start.3 = ((s32[2], f32[4,6]{1,0}), (s32[16], f32[32,6]{1,0})) all-gather-start(%y, %z), dimensions={0}
  %add = f32[1000,1000]{1,0} add(%all-gather.1, %b)
"""
    assert largest_gathered(listing) == 512
    assert largest_gathered("  %add = f32[10] add(%a, %b)") == 0


@pytest.mark.slow
def test_gpt2_fits_eight_tpus_that_are_not_here():
    """Each holds an eighth of the state, and the activations of no other chip."""
    compiler = ROOT / ".libtpu"
    if not compiler.exists():
        pytest.skip("libtpu is not in .libtpu, where .ci/run puts it")
    found = compiled("tpu", 0, "fsdp", PYTHONPATH=f"{compiler}:{ROOT}")
    assert found["bytes"] < 3.5 * 2**30
    assert found["argument_bytes"] < (found["state_bytes"] + (4 << 20)) / 7
    assert found["collectives"]["all-gather"]
    assert found["largest_gathered"] < 1.01 * found["largest_parameter"]


@pytest.mark.slow
def test_gpt2_on_an_h100_that_is_not_here_has_fused_attention():
    pytest.importorskip("jax_cuda12_plugin", reason="the CUDA plugin, 3 GB, is not installed: pip install jax[cuda12]")
    found = compiled("h100", 3, "data")
    assert found["attention"] == {"forward": 12, "backward": 12}
    assert found["temporary_bytes"] < 10.8 * 2**30


def test_the_report_is_that_of_its_record():
    folder = ROOT / "experiments" / "ahead_of_time"
    assert text(json.loads((folder / "results.json").read_text("utf-8"))) == (folder / "results.md").read_text("utf-8")

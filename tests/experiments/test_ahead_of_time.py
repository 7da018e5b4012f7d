import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from babyjax.training.devices import data_mesh
from experiments.ahead_of_time.__main__ import HBM, compile_step, row, text

ROOT = Path(__file__).parents[2]
COMPILE = """
import json
from experiments.ahead_of_time.__main__ import RUNS, TARGET, compile_step, mesh_of

print(json.dumps(compile_step(RUNS["gpt2"], mesh_of(TARGET), "fsdp")))
"""


def test_a_step_is_compiled_from_shapes_alone():
    found = compile_step(
        ["model=gpt2", "model.n_layer=1", "model.n_embd=24", "train.batch_size=2"], data_mesh(1), "fsdp", 2000
    )
    assert (found["devices"], found["collectives"]) == (1, {})
    assert found["state_bytes"] + 4 * 2000 <= found["argument_bytes"] <= found["bytes"]
    assert row(found).startswith("| gpt2, model.n_layer=1 model.n_embd=24 train.batch_size=2 | fsdp | 0.0")
    assert "| no |" in row(found | {"bytes": HBM + 1})


@pytest.mark.slow
def test_gpt2_fits_eight_tpus_that_are_not_here():
    """Each holds an eighth of the state, and the activations of no other chip."""
    compiler = ROOT / ".libtpu"
    if not compiler.exists():
        pytest.skip("libtpu is not in .libtpu, where .ci/run puts it")
    ran = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env={**os.environ, "PYTHONPATH": f"{compiler}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["bytes"] < 3.5 * 2**30
    assert found["argument_bytes"] < (found["state_bytes"] + (4 << 20)) / 7
    assert found["collectives"]["all-gather"]


def test_the_report_is_that_of_its_record():
    folder = ROOT / "experiments" / "ahead_of_time"
    assert text(json.loads((folder / "results.json").read_text("utf-8"))) == (folder / "results.md").read_text("utf-8")

"""The launch files, executed as far as a CPU can: two processes, with stand-ins for what a cluster provides."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from babyjax.options import load_config
from babyjax.runs.manifest import read_manifest
from experiments.processes.__main__ import environment

LAUNCH = Path(__file__).parents[1] / "launch"
OPTIONS = ("model=babygpt-v2-position", "data=synthetic", "data.length=20000", "train.batch_size=16")
# Starts two tasks and sets what JAX reads of Slurm.
SRUN = """#!/usr/bin/env bash
echo "srun $*"
while [[ $1 == --* ]]; do shift; done
export SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=1 SLURM_STEP_NODELIST=localhost
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & done
status=0
for job in $(jobs -p); do wait "$job" || status=$?; done
exit $status
"""


def train_options(run: Path) -> list[str]:
    return [*OPTIONS, "train.steps=5", "train.eval_interval=5", "train.eval_tokens=100", f"run_dir={run}"]


def surroundings(tmp_path: Path, **more: str) -> dict[str, str]:
    """An environment with two CPU devices for a process, the babyjax of these tests, and another home."""
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**environment(2), "PATH": path, "HOME": str(tmp_path), **more}


def is_trained(run: Path, output: str) -> bool:
    return [each.step for each in read_manifest(run).checkpoints] == [5] and "for 4 x cpu" in output


@pytest.mark.slow
def test_the_slurm_script_starts_a_task_per_device(tmp_path):
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    command = ["bash", str(LAUNCH / "slurm.sh"), *train_options(tmp_path / "run")]
    ran = subprocess.run(
        command, env=surroundings(tmp_path, SLURM_JOB_ID=str(os.getpid())), capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("srun --kill-on-bad-exit=1 babyjax train distributed=auto model=")
    assert is_trained(tmp_path / "run", ran.stdout)


def test_the_slurm_script_asks_for_a_gpu_per_task():
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", (LAUNCH / "slurm.sh").read_text(), re.MULTILINE))
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert asked["signal"].startswith("TERM@")


@pytest.mark.slow
def test_skypilot_starts_a_process_per_machine(tmp_path):
    job = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert job["num_nodes"] == 2
    assert set(job["envs"]) == {"OPTIONS"}
    machines = [
        subprocess.Popen(
            ["bash", "-euc", job["run"]],
            env=surroundings(
                tmp_path,
                SKYPILOT_NODE_IPS="127.0.0.1\n127.0.0.1",
                SKYPILOT_NUM_NODES="2",
                SKYPILOT_NODE_RANK=str(rank),
                OPTIONS=" ".join(train_options(tmp_path / "run")),
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    (shown, errors), (silent, more) = (machine.communicate() for machine in machines)
    assert ([machine.returncode for machine in machines], errors, silent, more) == ([0, 0], "", "", "")
    assert is_trained(tmp_path / "run", shown)


def test_every_host_of_a_tpu_slice_gets_the_command(tmp_path):
    (tmp_path / "gcloud").write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "gcloud").chmod(0o755)
    command = ["bash", str(LAUNCH / "tpu.sh"), "my-tpu", "us-central2-b", "model=gpt2", "run_dir=/shared/run"]
    ran = subprocess.run(command, env=surroundings(tmp_path), capture_output=True, text=True, check=True)
    *_, name, zone, workers, remote = ran.stdout.splitlines()
    assert (name, zone, workers) == ("my-tpu", "--zone=us-central2-b", "--worker=all")
    words = remote.removeprefix("--command=").split()
    assert words[:2] == ["babyjax", "train"]
    assert load_config(words[2:]).is_distributed

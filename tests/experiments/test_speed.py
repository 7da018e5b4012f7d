"""Every figure of the speed experiment can be measured; workers answer, take turns and are stopped while they wait."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ladder import mostly_slow

from babyjax import CharTokenizer, load_corpus

pytest.importorskip("torch", reason="PyTorch is not installed (the bench extra)")
from experiments.speed import __main__ as speed
from experiments.speed import ours, report, theirs, workers
from experiments.speed.figures import OURS, THEIRS, Plan, Text
from experiments.speed.workers import Side, take_turns

MODULES = {OURS: ours.MEASUREMENTS, THEIRS: theirs.MEASUREMENTS}
WORKER = """
import itertools
from experiments.speed.workers import serve
serve({"count": lambda start: lambda counter=itertools.count(start): {"number": next(counter)}})
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    path = tmp_path_factory.mktemp("text") / "short.txt"
    corpus = load_corpus("synthetic", states=5, length=2000)
    path.write_text(corpus.text, encoding="utf-8")
    return Text(str(path), CharTokenizer.fit(corpus.text).vocab_size)


def in_process(sides: list[Side], rounds: int) -> list[workers.Details]:
    return [
        MODULES[side.module][side.measure](**side.arguments)() | {"seconds": [1.0], "median": 1.0} for side in sides
    ]


@pytest.mark.parametrize("part", mostly_slow((part for part in speed.PARTS if part != "commands"), "counting"))
def test_every_figure_is_measured_and_shown(text, part):
    figures = [figure for figure in Plan([text], gpu=False, quick=True).figures() if figure.part == part]
    assert figures
    for figure in figures:
        sides = zip(figure.sides, in_process(figure.sides, 1), strict=True)
        measured = figure._asdict() | {"sides": [{"label": side.label} | details for side, details in sides]}
        for row in report.rows(json.loads(json.dumps(measured))):
            assert row.count("|") == 6


def test_full_and_gpu_plans_name_measurements_that_exist(text):
    for gpu in (False, True):
        for figure in Plan([text], gpu, quick=False).figures():
            assert figure.part in speed.PARTS
            assert all(side.measure in MODULES[side.module] for side in figure.sides)


@pytest.mark.slow
def test_the_first_step_is_seen(tmp_path):
    arguments = [
        "train",
        "model=babygpt",
        "data=synthetic",
        "data.length=500",
        "train.steps=2",
        "train.eval_interval=1",
    ]
    assert ours.command(arguments, until="1 ")()["seconds"] > 0


def state_of(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]


@pytest.fixture
def counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module whose worker counts its answers, and imports nothing that takes time."""
    (tmp_path / "counter.py").write_text(WORKER, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    return "counter"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_sides_take_turns_and_are_stopped_while_they_wait(counter, monkeypatch):
    asked = []

    class Watched(workers.Worker):
        def ask(self):
            answer = super().ask()
            asked.append(self._process.pid)
            while state_of(self._process.pid) != "T":
                pass
            return answer

    monkeypatch.setattr(workers, "Worker", Watched)
    sides = [Side(counter, "count", {"start": 0}), Side(counter, "count", {"start": 10}, repeats=1000)]
    first, second = take_turns(sides, rounds=2)
    assert asked == asked[:2] * 3
    assert (first["number"], second["number"]) == (2, 12)
    assert len(first["seconds"]) == len(second["seconds"]) == 2
    assert second["median"] == sum(second["seconds"]) / 2
    assert not any(Path(f"/proc/{process}").exists() for process in asked)
    assert len(take_turns(sides[:1], rounds=0)[0]["seconds"]) == 1


def test_a_failing_worker_is_reported(counter):
    with pytest.raises(RuntimeError, match="nonsense"):
        take_turns([Side(counter, "nonsense", {})], 0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_measurement_that_is_terminated_leaves_no_worker(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("abc" * 100, encoding="utf-8")
    command = [sys.executable, "-m", "experiments.speed", str(text), "--quick"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (started := children.read_text(encoding="utf-8").split()):
            time.sleep(0.05)
            assert process.poll() is None
        process.terminate()
    assert process.returncode == 1
    deadline = time.monotonic() + 20  # workers end when their pipe does, a moment later
    while any(_is_running(child) for child in started):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_a_part_is_recorded_on_request(text, tmp_path, monkeypatch, capsys):
    arguments = ["speed", text.path, "--quick", "--only", "evaluation", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    speed.main()
    written = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "exact evaluation of v1" in written
    assert "Load average" in written
    (tmp_path / "results.md").unlink()
    monkeypatch.setattr(sys, "argv", ["speed", "--report", str(tmp_path / "results.json")])
    speed.main()
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == written

import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Compiled programs are kept apart from the user's and shared by the processes of a test run, or by all test runs for
# which BABYJAX_TEST_CACHE names a folder.
if "BABYJAX_TEST_CACHE" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory()
    os.environ["BABYJAX_TEST_CACHE"] = _CACHE.name
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(os.environ["BABYJAX_TEST_CACHE"], "compiled"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import hypothesis
import numpy as np
import pytest

from babyjax.cli import run_command
from babyjax.data.corpus import Corpus, read_corpus
from babyjax.threefry import unroll_threefry

unroll_threefry()  # as every command does

hypothesis.settings.register_profile("babyjax", deadline=None, max_examples=6, derandomize=True)
hypothesis.settings.register_profile("thorough", hypothesis.settings.get_profile("babyjax"), max_examples=30)
hypothesis.settings.load_profile("babyjax")

SHARED = Path(__file__).parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser):
    parser.addoption("--kills", type=int, default=3, help="how often the kill-and-resume test kills its run")


def pytest_configure(config: pytest.Config):
    # Workers of pytest-xdist inherit this. With a thread per core in every worker, the matrix products of NumPy and
    # PyTorch would have more threads than there are cores.
    if config.getoption("numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def shared_corpus(name: str) -> Corpus:
    path = SHARED / f"{name}.txt"
    if not path.is_file():
        pytest.skip(f"{name}.txt is not beside this checkout")
    return read_corpus(path)


@pytest.fixture(scope="session")
def tinyshakespeare() -> Corpus:
    return shared_corpus("tinyshakespeare")


@pytest.fixture(scope="session")
def songci() -> Corpus:
    return shared_corpus("songci")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Run a command inside this process, in an empty folder: `call("train", ...)` is (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        module = importlib.import_module(f"babyjax.{name}")
        with pytest.raises(SystemExit) as left:
            run_command(module.main, module.help_text)
        assert isinstance(left.value.code, int)
        out, err = capsys.readouterr()
        return left.value.code, out, err

    return run


@pytest.fixture
def command(tmp_path: Path):
    """Run a command as its user does, in an empty folder: `command("train", "model=bigram")`."""

    def run(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "babyjax", name, *arguments],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            encoding="utf-8",
            timeout=300,
            check=False,
        )

    return run

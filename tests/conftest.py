import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from babyjax.data.corpus import Corpus, read_corpus

hypothesis.settings.register_profile("babyjax", deadline=None, max_examples=30, derandomize=True)
hypothesis.settings.load_profile("babyjax")

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Doors started by the tests keep compiled programs apart from the user's."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("xla"))


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
def door(tmp_path: Path):
    """Run a door as its user does, in an empty folder: `door("train", "model=bigram")`."""

    def run(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", f"babyjax.{name}", *arguments],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run

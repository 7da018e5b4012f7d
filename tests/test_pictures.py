"""Pictures are the same whenever they are drawn."""

import pytest

from babyjax.errors import BabyjaxError
from babyjax.pictures import save_picture

figures = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed (the report extra)")


def drawn(path):
    figure = figures.Figure()
    figure.subplots().plot([1, 3, 2])  # is clipped, by a path with an id
    save_picture(figure, path)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_same_figure_gives_the_same_bytes(tmp_path, suffix):
    first = drawn(tmp_path / f"1{suffix}")
    assert first == drawn(tmp_path / f"2{suffix}")
    assert b"date" not in first


def test_a_folder_that_is_missing_is_said(tmp_path):
    with pytest.raises(BabyjaxError, match="No such file or directory"):
        drawn(tmp_path / "nowhere" / "picture.svg")

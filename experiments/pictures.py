"""Pictures of results. Needs the `report` extra."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure


def save_svg(figure: Figure, path: Path) -> None:
    """Write a figure as SVG; the same figure gives the same bytes."""
    with matplotlib.rc_context({"svg.hashsalt": "babyjax"}):
        figure.savefig(path, format="svg", metadata={"Date": None})

"""The notebook is its script, and runs from top to bottom."""

from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")
nbclient = pytest.importorskip("nbclient")

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def test_the_notebook_is_its_script():
    notebook, script = (jupytext.read(EXPERIMENTS / name) for name in ("colab.ipynb", "colab.py"))
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in script.cells
    ]
    assert all(not cell.get("outputs") for cell in notebook.cells)


@pytest.mark.slow
def test_it_runs_and_shows_what_it_promises():
    notebook = jupytext.read(EXPERIMENTS / "colab.ipynb")
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    assert "steps = 5000" in parameters.source
    parameters.source = parameters.source.replace("steps = 5000", "steps = 300")
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(EXPERIMENTS)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    pictures = [output for output in outputs if "image/svg+xml" in output.get("data", {})]
    assert len(pictures) == 2
    assert "300 steps in" in printed
    assert "saved to" in printed  # by the commands
    assert "split  nats/token  std error" in printed  # by evaluate
    assert all(f"--- {name}" in printed for name in ("count bigram", "BabyGPT, AdamW", "BabyGPT, on counts"))
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)

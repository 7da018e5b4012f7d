"""Experiments on one text: they run at tiny sizes, and what is written is what their records say."""

import json
import sys
from importlib import import_module
from pathlib import Path

import jax.numpy as jnp
import pytest
from ladder import mostly_slow

from babyjax import load_corpus
from experiments.record import run_experiment

HERE = Path(__file__).parents[2] / "experiments"
PICTURES = {"ladder": "ladder.svg", "growth": None, "rank_frontier": "frontier.svg", "ngram": "ngram.svg"}


def run(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    experiment = import_module(f"experiments.{name}.__main__")
    run_experiment(HERE / name, experiment.measure, experiment.report)


@pytest.mark.parametrize("name", PICTURES)
def test_what_is_written_is_on_record(name, tmp_path, monkeypatch):
    run(name, "--report", "--out", str(tmp_path), monkeypatch=monkeypatch)
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == (HERE / name / "results.md").read_text("utf-8")
    picture = PICTURES[name]
    assert picture is None or (tmp_path / picture).read_text(encoding="utf-8").endswith("</svg>\n")


@pytest.mark.parametrize("name", mostly_slow(PICTURES, "ladder"))
def test_it_runs_from_measuring_to_reporting(name, tmp_path, monkeypatch, capsys):
    if name == "ngram":
        pytest.importorskip("pyppmd")
    path = tmp_path / "text.txt"
    path.write_text(load_corpus("synthetic", states=4, length=600).text, encoding="utf-8")
    run(name, str(path), "--quick", "--out", str(tmp_path / "out"), monkeypatch=monkeypatch)
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    recorded = json.loads((HERE / name / "results.json").read_text(encoding="utf-8"))
    assert set(recorded) <= set(results)
    assert results["corpus"] == "text"
    assert results["command"].startswith(f"python -m experiments.{name} text.txt")


@pytest.mark.parametrize("name", ["recipes", "huggingface", "five_minutes", "speedrun"])
def test_a_report_is_that_of_its_record(name, tmp_path):
    results = json.loads((HERE / name / "results.json").read_text(encoding="utf-8"))
    import_module(f"experiments.{name}.{'__main__' if name == 'huggingface' else 'report'}").report(results, tmp_path)
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == (HERE / name / "results.md").read_text("utf-8")


@pytest.mark.slow
def test_recipes_are_measured_by_name_and_kept_by_seed(tmp_path, monkeypatch, capsys):
    recipes = import_module("experiments.recipes.__main__")
    path = tmp_path / "text.txt"
    path.write_text(load_corpus("synthetic", states=4, length=3000).text, encoding="utf-8")
    size = "model.n_layer=1 model.n_embd=16 model.block_size=32 train.batch_size=2 train.steps=3"
    variants = {
        "plain": recipes.Variant(f"model=gpt-tiny {size}", (0, 1)),
        "all": recipes.Variant(
            f"model=gpt-tiny {size}", ema=0.5, shuffled=True, silent=True, orthogonalization=1, final=True
        ),
    }
    monkeypatch.setattr(recipes, "VARIANTS", variants)
    for names in (["plain"], ["plain", "all"]):
        monkeypatch.setattr(sys, "argv", ["recipes", str(path), *names, "--out", str(tmp_path)])
        recipes.main()
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["variants"]
    assert [run["seed"] for run in results["plain"]["runs"]] == [0, 1]
    assert results["all"]["runs"][0]["averaged"] != results["all"]["runs"][0]["val"]
    monkeypatch.setattr(sys, "argv", ["recipes", str(path), "other"])
    with pytest.raises(SystemExit):
        recipes.main()
    assert "unknown variant: other" in capsys.readouterr().err


@pytest.mark.slow
def test_every_window_of_a_shuffled_epoch_comes_once():
    recipes = import_module("experiments.recipes.__main__")
    tokens = jnp.arange(101)
    batches = [recipes.shuffled_batch(tokens, 0, step, 3, 5) for step in range(12)]
    for epoch in (batches[:6], batches[6:]):
        starts = sorted(int(row[0]) for inputs, _ in epoch for row in inputs)
        assert len({start // 5 for start in starts}) == 18
        assert len({start % 5 for start in starts}) == 1
    assert all((targets == inputs + 1).all() for inputs, targets in batches)


def test_a_growth_report_counts_seeds():
    text = import_module("experiments.growth.report").text
    results = json.loads((HERE / "growth" / "results.json").read_text(encoding="utf-8"))
    said = text(results)
    behind = results["pairs"][-1]["runs"]
    assert [run["grown"][-1] < run["random"][len(run["grown"]) - 1] for run in behind].count(True) == 1
    assert "with every seed in 5 of 6 pairs" in said
    assert "n_embd=64 block_size=16: 1 of 3" in said


@pytest.mark.parametrize("arguments", [(), ("text.txt", "--report"), ("text.txt", "--quick")])
def test_contradicting_arguments_are_refused(arguments, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run("ladder", *arguments, monkeypatch=monkeypatch)
    assert "give a text file, or --report" in capsys.readouterr().err

"""Experiments on one text: they run at tiny sizes, and what is written is what their records say."""

import json
import sys
from importlib import import_module
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from babyjax import load_corpus
from experiments.record import run_experiment

HERE = Path(__file__).parents[2] / "experiments"
PICTURES = {"growth": None, "rank_frontier": "frontier.svg", "ngram": "ngram.svg", "corpora": None}


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


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_it_runs_from_measuring_to_reporting(name, tmp_path, monkeypatch, capsys):
    for package in {"ngram": ("pyppmd",), "corpora": ("torch", "tokenizers")}.get(name, ()):
        pytest.importorskip(package)
    corpora = import_module("experiments.corpora.__main__")
    apart = corpora.in_a_process  # where starting takes most of the time, so one side is enough
    monkeypatch.setattr(
        corpora, "in_a_process", lambda side, *rest: (apart if side == "learned" else corpora.measured)(side, *rest)
    )
    monkeypatch.setattr(corpora, "HUGE", 1e8)  # --quick takes a thousandth
    path = tmp_path / "text.txt"
    path.write_text(load_corpus("synthetic", states=4, length=600).text, encoding="utf-8")
    run(name, str(path), "--quick", "--out", str(tmp_path / "out"), monkeypatch=monkeypatch)
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    recorded = json.loads((HERE / name / "results.json").read_text(encoding="utf-8"))
    assert set(recorded) <= set(results)
    assert results["corpus"] == "text"
    assert results["command"].startswith(f"python -m experiments.{name} text.txt")


@pytest.mark.parametrize("name", ["recipes", "huggingface", "five_minutes", "speedrun", "reference", "scaling"])
def test_a_report_is_that_of_its_record(name, tmp_path):
    results = json.loads((HERE / name / "results.json").read_text(encoding="utf-8"))
    import_module(f"experiments.{name}.{'__main__' if name == 'huggingface' else 'report'}").report(results, tmp_path)
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == (HERE / name / "results.md").read_text("utf-8")


@pytest.mark.slow
def test_stories_are_told_by_the_commands(tmp_path, monkeypatch):
    stories = import_module("experiments.corpora.stories")
    monkeypatch.setattr(stories, "MODEL", "babygpt-v2-position")
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(["ROMEO:\nAnd so it goes,", "JULIET:\nand goes again."] * 400), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["stories", str(path), "--steps", "2", "--out", str(tmp_path)])
    stories.main()
    assert "ROMEO:" in json.loads((tmp_path / "stories.json").read_text(encoding="utf-8"))["story"]


def test_the_report_of_stories_is_that_of_its_record(tmp_path):
    stories, here = import_module("experiments.corpora.stories"), HERE / "corpora"
    stories.report(json.loads((here / "stories.json").read_text(encoding="utf-8")), tmp_path)
    assert (tmp_path / "stories.md").read_text(encoding="utf-8") == (here / "stories.md").read_text(encoding="utf-8")


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
        run("growth", *arguments, monkeypatch=monkeypatch)
    assert "give a text file, or --report" in capsys.readouterr().err


@pytest.mark.slow
def test_rungs_are_measured_once_and_compared_with_the_one_below(tmp_path, monkeypatch, capfd):
    reference = import_module("experiments.reference.__main__")
    path, out = tmp_path / "text.txt", tmp_path / "out"
    path.write_text(load_corpus("synthetic", states=4, length=300_000).text, encoding="utf-8")
    monkeypatch.setattr(reference, "SEEDS", 3)
    monkeypatch.setattr(reference, "ORDERS", 2)
    monkeypatch.setitem(reference.RUNGS, "babygpt", "1e-3,3e-2")
    options = ("--tokens", "2560", "--work", str(tmp_path / "work"), "--out", str(out))
    monkeypatch.setattr(sys, "argv", ["reference", str(path), "bigram", "babygpt", *options])
    reference.main()
    assert "trained before" not in capfd.readouterr().out
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))["text"]
    bigram, network = found["rungs"]["bigram"], found["rungs"]["babygpt"]
    assert (network["rate"], network["batch"], len(network["losses"])) == ("3e-2", [10, 32, 8], 3)
    assert (network["better"], network["below"]) == ("A", "bigram")
    assert network["difference"] == pytest.approx(network["mean"] - bigram["mean"])
    assert bigram["mean"] == pytest.approx(found["ngrams"]["2"], abs=0.01)
    assert "worse than bigram: +" in (out / "results.md").read_text(encoding="utf-8")
    assert (out / "text.svg").exists()
    monkeypatch.setattr(sys, "argv", ["reference", str(path), "babygpt", *options])
    reference.main()
    assert "trained before" in capfd.readouterr().out
    monkeypatch.setattr(sys, "argv", ["reference", str(path), "other"])
    with pytest.raises(SystemExit):
        reference.main()
    assert "unknown rung: other" in capfd.readouterr().err


@pytest.mark.slow
def test_excess_losses_are_measured_and_reported(tmp_path, monkeypatch, capsys):
    scaling = import_module("experiments.scaling.__main__")
    monkeypatch.setattr(scaling, "RECIPE", "babygpt-v8-projection")  # which compiles sooner
    monkeypatch.setattr(scaling, "LAYERS", 1)
    monkeypatch.setattr(sys, "argv", ["scaling", "--quick", "--out", str(tmp_path)])
    scaling.main()
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [len(run["networks"]) for run in results["runs"]] == [4, 4]
    assert all(0 < row["excess"] < 5 for run in results["runs"] for row in run["networks"] + run["ngrams"])
    assert all(abs(run["floor"] - run["entropy_rate"]) < 0.1 for run in results["runs"])
    assert (tmp_path / "scaling.svg").exists()


def test_the_fit_finds_exponents_and_floor():
    scaling = import_module("experiments.scaling.__main__")
    sizes, tokens = (side.ravel() for side in np.meshgrid(10.0 ** np.arange(2, 6), 4.0 ** np.arange(8, 12)))
    found = scaling.fit(sizes, tokens, 30 * sizes**-0.7 + 200 * tokens**-0.5, 1.25)
    assert [found[key] for key in ("alpha", "alpha_free")] == pytest.approx([0.7] * 2, abs=1e-3)
    assert [found[key] for key in ("beta", "beta_free")] == pytest.approx([0.5] * 2, abs=1e-3)
    assert abs(found["floor_error"]) < 1e-3

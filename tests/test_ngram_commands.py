"""Counted n-grams and mixtures by the commands: train, evaluate, sample, export, and mix."""

import io
import json
import re
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from ladder import mostly_slow

import babyjax
from babyjax.train import main as train

TEXT = "to be, or not to be, that is the question.\n" * 30
SMALL = ["train.steps=4", "train.batch_size=2", "model.n_embd=4", "model.block_size=6"]
RUNS = {
    "bigram": ["model=bigram"],
    "three": ["model=ngram", "model.order=3"],
    "auto": ["model=ngram", "model.discounts=fitted"],
    "network": ["model=babygpt-v2-position", *SMALL],
}
MIXTURES = {"counted": ("three", "bigram"), "mixed": ("three", "network")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`runs("three")` is the directory of a run above, trained when it is first asked for."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")

    @cache
    def run(name: str) -> Path:
        options = RUNS.get(name) or [
            "model=mixture",
            f"model.parts={','.join(str(run(part)) for part in MIXTURES[name])}",
        ]
        with redirect_stdout(io.StringIO()):
            assert train([*options, f"data.path={folder / 'text.txt'}", f"run_dir={folder / name}"]) == 0
        return folder / name

    return run


@pytest.mark.parametrize("name", ["three", "auto", "counted", "mixed"])
@pytest.mark.slow
def test_a_run_is_evaluated_and_sampled_like_any_other(call, runs, name):
    status, out, err = call("evaluate", f"run_dir={runs(name)}", "format=json")
    assert (status, err) == (0, "")
    result = json.loads(out)
    run = babyjax.load_run(runs(name))
    assert result["splits"]["val"]["tokens"] == 128
    assert result["splits"]["val"]["nats_per_token"] < 3
    assert result["ngram_order"] >= 1
    assert "adaptive" not in result["splits"]["val"]
    status, out, err = call("sample", f"run_dir={runs(name)}", "prompt=to ", "max_new_tokens=20", "seed=3")
    assert (status, err, len(out)) == (0, "", 24)
    assert set(out) <= set(TEXT)
    assert run.model.vocab_size == run.tokenizer.vocab_size


def test_training_again_finds_the_run_complete(call, runs):
    text = f"data.path={runs('three').parent / 'text.txt'}"
    status, out, _ = call("train", *RUNS["three"], text, f"run_dir={runs('three')}")
    assert (status, "is already trained (1 step)" in out) == (0, True)
    parts = f"model.parts={runs('three')},{runs('bigram').parent}/./bigram"
    status, out, _ = call("train", "model=mixture", parts, text, f"run_dir={runs('counted')}")
    assert (status, "is already trained (1 step)" in out) == (0, True)
    status, _, err = call("train", "model=ngram", "model.order=2", text, f"run_dir={runs('three')}")
    assert (status, "model.order is 3 there, 2 here" in err) == (1, True)


def test_a_mixture_needs_nothing_of_its_parts_once_it_is_trained(call, runs, tmp_path):
    copies = {name: tmp_path / name for name in ("three", "bigram", "mixed")}
    text = f"data.path={runs('three').parent / 'text.txt'}"
    with redirect_stdout(io.StringIO()):
        for name in ("three", "bigram"):
            train([*RUNS[name], text, f"run_dir={copies[name]}"])
        parts = f"model.parts={copies['three']},{copies['bigram']}"
        train(["model=mixture", parts, text, f"run_dir={copies['mixed']}"])
    before = call("evaluate", f"run_dir={copies['mixed']}")
    assert before[0] == 0
    for name in ("three", "bigram"):
        copies[name].rename(tmp_path / f"{name}-moved")
    assert call("evaluate", f"run_dir={copies['mixed']}") == before


@pytest.mark.parametrize("name", mostly_slow(["bigram", "three", "counted", "mixed"], "three"))
def test_adaptive_losses_have_a_column_of_their_own(call, runs, name):
    static = call("evaluate", f"run_dir={runs(name)}")[1]
    status, out, _ = call("evaluate", f"run_dir={runs(name)}", "adaptive=true")
    assert status == 0
    assert "adaptive" not in static.lower()
    assert "  adaptive nats/token\n" in out
    assert "Adaptive: each token is predicted, then counted. Not to be compared" in out
    stride = 1 if name == "mixed" else None
    options = ["adaptive=true", "format=json", "split=val", *(["stride=1"] if stride else [])]
    status, out, _ = call("evaluate", f"run_dir={runs(name)}", *options)
    run = babyjax.load_run(runs(name))
    split = babyjax.split_tokens(run.tokenizer.encode(TEXT))
    nats, default = (
        babyjax.adaptive_nats(run.config, run.model, run.parts, split, run.tokenizer.byte_lengths, each)
        for each in (stride, None)
    )
    assert (nats.mean() != pytest.approx(default.mean(), rel=1e-5)) == (stride is not None)
    assert json.loads(out)["splits"]["val"]["adaptive"]["nats_per_token"] == pytest.approx(nats.mean())


def test_the_loss_of_every_token_can_be_saved(call, runs, tmp_path):
    status, out, _ = call("evaluate", f"run_dir={runs('three')}", "per_token=x.npz", "adaptive=true", "format=json")
    assert status == 0
    result = json.loads(out)["splits"]
    with np.load(tmp_path / "x.npz") as arrays:
        assert {name: len(nats) for name, nats in arrays.items()} == {
            "train": 1160,
            "val": 128,
            "val_ngram": 128,
            "val_adaptive": 128,
        }
        assert arrays["val"].mean() == pytest.approx(result["val"]["nats_per_token"])
        assert arrays["val_ngram"].mean() == pytest.approx(result["val"]["ngram_baseline"])
        assert arrays["train"].mean() == pytest.approx(result["train"]["nats_per_token"])
    status, _, err = call("evaluate", f"run_dir={runs('three')}", "per_token=none/x.npz")
    assert (status, "cannot write per_token=" in err) == (1, True)


@pytest.mark.parametrize("name", mostly_slow(["bigram", "three", "counted", "mixed", "network"], "three"))
def test_a_run_is_verified(call, runs, name):
    status, out, err = call("evaluate", f"run_dir={runs(name)}", "verify=true")
    assert (status, err) == (0, "")
    assert "\ncausal         passed" in out
    assert f"losses         {'not checked' if name in MIXTURES else 'passed'}" in out
    assert ("cross-fitted" in out) == (name in MIXTURES)
    status, out, _ = call("evaluate", f"run_dir={runs(name)}", "verify=true", "format=json", "split=val")
    assert status == 0
    result = json.loads(out)
    verification = result["verification"]
    assert verification["passed"] is True
    assert verification["tokens"] == result["splits"]["val"]["tokens"] == 128
    assert verification["checks"]["bytes"]["detail"] == "129 bytes of 129 tokens, 129 in the text"
    if name not in MIXTURES:
        assert verification["nats_per_token"] == pytest.approx(result["splits"]["val"]["nats_per_token"], rel=1e-5)


def test_losses_that_cannot_be_trusted_are_shown_and_are_an_error(call, runs, monkeypatch):
    honest = babyjax.token_nats
    monkeypatch.setattr(babyjax, "token_nats", lambda *arguments: honest(*arguments) * 0.9)
    for form in ("text", "json"):
        status, out, err = call("evaluate", f"run_dir={runs('three')}", "verify=true", f"format={form}")
        assert (status, err) == (1, "error: the losses cannot be trusted: losses failed\n")
        assert "128 losses, mean" in out


def test_a_model_goes_out_and_comes_back(call, runs, tmp_path):
    status, out, _ = call("export", f"run_dir={runs('three')}", f"out={tmp_path / 'x.arpa'}")
    assert (status, out) == (0, f"written to {tmp_path / 'x.arpa'}\n")
    status, _, err = call("export", f"run_dir={runs('three')}", f"out={tmp_path / 'x.arpa'}")
    assert (status, err) == (1, f"error: {tmp_path / 'x.arpa'} exists; choose another with out=\n")
    text = f"data.path={runs('three').parent / 'text.txt'}"
    status, out, err = call("train", "model=ngram", f"model.arpa={tmp_path / 'x.arpa'}", text, "run_dir=back")
    assert (status, err) == (0, "")
    assert "read " in out
    ours, theirs = (
        call("evaluate", f"run_dir={path}", "split=val")[1].splitlines() for path in (runs("three"), "back")
    )
    assert ours[-6].split()[:3] == theirs[-6].split()[:3]
    status, out, _ = call("export", f"run_dir={runs('three')}")
    assert (status, out) == (0, f"written to {runs('three') / 'model.arpa'}\n")
    assert (runs("three") / "model.arpa").read_bytes() == (tmp_path / "x.arpa").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ("train model=mixture", 2, "model.parts=RUN,RUN,... needs at least two run directories"),
        ("train model=mixture model.parts={three}", 2, "needs at least two run directories"),
        ("train model=mixture model.parts={three},{none}", 1, "there is no run in"),
        ("train model=mixture model.parts={three},{counted}", 1, "is itself a mixture; mix its parts instead"),
        ("train model=mixture model.parts={three},{bigram} data.tokenizer=byte", 1, "was trained on text by char"),
        ("train model=ngram model.arpa=none.arpa", 1, "cannot read"),
        ("train model=ngram model.arpa={text}", 1, "is not an ARPA file, line"),
        ("train model=ngram train.grow_from={three}", 2, "train.grow_from= is for trainer=sgd"),
        ("evaluate run_dir={three} stride=2", 2, "stride= is for models with a block; ngram uses all"),
        ("evaluate run_dir={three} adaptive=true split=train", 2, "adaptive=true is about the validation split"),
        ("evaluate run_dir={three} verify=true split=train", 2, "verify=true is about the validation split"),
        ("export run_dir={bigram}", 2, "format=hf is for networks"),
        ("export run_dir={bigram} format=arpa", 2, "format=arpa is for model=ngram"),
        ("export run_dir={three} out=none/x", 1, "cannot write"),
        ("export", 2, "run_dir=DIR is missing"),
        ("export run_dir={three} format=onnx", 2, "unknown value of format: 'onnx'"),
    ],
)
def test_what_does_not_fit_gets_one_sentence(call, runs, arguments, status, message):
    wanted = set(re.findall(r"{(\w+)}", arguments)) & {*RUNS, *MIXTURES}
    there = {"text": runs("three").parent / "text.txt", "none": runs("three").parent / "none"}
    name, *options = arguments.format(**there, **{run: runs(run) for run in wanted}).split()
    given = [f"data.path={runs('three').parent / 'text.txt'}", "run_dir=new"] if name == "train" else []
    found, out, err = call(name, *options, *given)
    assert (found, out if name != "train" else "") == (status, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1

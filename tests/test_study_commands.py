"""Many runs by the commands: seeds of one recipe, sweeps, and comparisons with a verdict."""

import io
import json
import os
import re
import shutil
import signal
import xml.etree.ElementTree as ET
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path

import chex
import numpy as np
import pytest
from scipy.stats import t

import babyjax
from babyjax import runner
from babyjax.compare import _differences
from babyjax.errors import ConfigError, DivergenceError, RunError
from babyjax.options import config_to_dict
from babyjax.runs.manifest import read_manifest
from babyjax.studies import read_losses
from babyjax.sweep import combinations, name_of
from babyjax.train import main as train

SYNTHETIC = ("data=synthetic", "data.length=300000", "data.states=5")
TINY = (*SYNTHETIC, "model.n_embd=4", "train.batch_size=4", "train.steps=40", "train.eval_interval=20")
POSITION = ("model=babygpt-v2-position", *TINY, "model.block_size=6")
RUNS = {
    "seeds": (*TINY, "train.seeds=3"),
    "long": (*TINY, "train.seeds=3", "train.steps=400"),
    "again": (*TINY, "train.seed=7"),
    "counted": ("model=bigram", *SYNTHETIC),
    "position": (*POSITION, "train.seeds=2"),
    "bytes": (*TINY, "data.tokenizer=byte"),
    "other": (*TINY, "data.seed=1"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`runs("seeds")` is the directory of a run above, trained when it is first asked for."""
    folder = tmp_path_factory.mktemp("runs")

    @cache
    def run(name: str) -> Path:
        with redirect_stdout(io.StringIO()):
            assert train([*RUNS[name], f"run_dir={folder / name}"]) == 0
        return folder / name

    return run


@pytest.fixture
def compared(call, runs):
    """`compared("seeds", "long")` is the result of comparing these runs."""

    def compare(*names, **options):
        given = [f"{key}={value}" for key, value in options.items()]
        folders = [runs(name) if name in RUNS else name for name in names]
        status, out, err = call("compare", *map(str, folders), "format=json", *given)
        assert (status, err) == (0, "")
        return json.loads(out)

    return compare


def files_of(folder):
    """What a finished run ends with."""
    newest = read_manifest(folder).checkpoints[-1]
    return newest.arrays_digest, (folder / "metrics.jsonl").read_bytes(), (folder / "result.json").read_bytes()


def test_each_seed_is_the_run_that_training_it_alone_gives(call, runs, tmp_path):
    assert call("train", *TINY, "train.seed=1", "run_dir=alone")[0] == 0
    assert files_of(runs("seeds") / "seed-1") == files_of(tmp_path / "alone")
    assert files_of(runs("seeds") / "seed-1")[0] != files_of(runs("seeds") / "seed-2")[0]
    one = babyjax.load_run(tmp_path / "alone").config
    assert config_to_dict(babyjax.load_run(runs("seeds") / "seed-1").config) == config_to_dict(one)


def test_a_seed_goes_on_alone(call, runs, tmp_path):
    folder = Path(shutil.copytree(runs("seeds") / "seed-2", tmp_path / "mine"))
    status, out, _ = call("train", *TINY, "train.seed=2", "train.steps=60", f"run_dir={folder}")
    assert status == 0
    assert "continuing from step 40" in out
    assert babyjax.load_run(folder).step == 60


def test_the_summary_is_students(call, runs, tmp_path):
    summary = json.loads((runs("seeds") / "seeds.json").read_text())
    losses = [
        json.loads((runs("seeds") / f"seed-{seed}" / "result.json").read_text())["losses"]["val"]["nats_per_token"]
        for seed in range(3)
    ]
    assert summary["seeds"] == [0, 1, 2]
    assert summary["val"]["losses"] == losses
    assert summary["val"]["deviation"] == pytest.approx(np.std(losses, ddof=1))
    assert summary["val"]["error"] == pytest.approx(t.ppf(0.975, 2) * np.std(losses, ddof=1) / np.sqrt(3))
    shutil.copytree(runs("seeds"), tmp_path / "here")
    status, out, _ = call("train", *RUNS["seeds"], "run_dir=here")
    assert status == 0
    assert out.count("trained before") == 3
    assert f"val {np.mean(losses):.4f} +- {summary['val']['error']:.4f} nats/token (95 % over 3 seeds" in out
    assert "next      " in out
    assert "compare here ANOTHER_RUN" in out


@contextmanager
def interrupted_at(count, monkeypatch):
    """SIGINT arrives with the event of this number."""
    with_losses, events = runner.with_losses, []

    def interrupted(event, *arguments):
        events.append(event)
        if len(events) == count:
            signal.raise_signal(signal.SIGINT)
        return with_losses(event, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(runner, "with_losses", interrupted)
        yield


@pytest.mark.slow
def test_ctrl_c_stops_all_seeds_and_the_same_command_goes_on(call, monkeypatch):
    with interrupted_at(7, monkeypatch):
        status, out, _ = call("train", *RUNS["seeds"], "run_dir=here")
    assert status == 130
    assert "of 3 seeds are trained" in out
    assert not Path("here/seeds.json").exists()
    status, out, _ = call("train", *RUNS["seeds"], "run_dir=here")
    assert status == 0
    assert "trained before" in out
    assert call("train", *RUNS["seeds"], "run_dir=whole")[0] == 0
    for seed in range(3):
        assert files_of(Path(f"here/seed-{seed}")) == files_of(Path(f"whole/seed-{seed}"))


def test_seeds_side_by_side_are_runs_of_their_own(call, runs, monkeypatch):
    """As on an accelerator: equal to the runs alone except for rounding, stopped together, and continued."""
    monkeypatch.setattr(runner.GradientTrainer, "gains_side_by_side", True)
    with interrupted_at(4, monkeypatch):
        status, out, _ = call("train", *RUNS["seeds"], "run_dir=here")
    assert (status, out.count("stopped after step 8"), "0 of 3 seeds are trained" in out) == (130, 3, True)
    assert [babyjax.load_run(f"here/seed-{seed}").step for seed in range(3)] == [8, 8, 8]
    status, out, _ = call("train", *RUNS["seeds"], "run_dir=here")
    assert (status, out.count(" s side by side")) == (0, 3)
    for seed in range(3):
        ours, theirs = (babyjax.load_run(path / f"seed-{seed}") for path in (Path("here"), runs("seeds")))
        chex.assert_trees_all_close(ours.model, theirs.model, rtol=1e-5, atol=1e-6)
        rows = [
            [json.loads(row) for row in (path / f"seed-{seed}/metrics.jsonl").read_text().splitlines()]
            for path in (Path("here"), runs("seeds"))
        ]
        assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
        np.testing.assert_allclose(*([row["train_loss"] for row in each] for each in rows), rtol=1e-5)
    assert call("train", *RUNS["seeds"], "run_dir=here")[1].count("trained before") == 3


def test_seeds_before_one_that_diverges_finish_side_by_side_too(call, monkeypatch):
    monkeypatch.setattr(runner.GradientTrainer, "gains_side_by_side", True)
    record = runner.Run.record

    def diverging(run, event, **options):
        if run.folder.name == "seed-1" and event.step > 8:
            raise DivergenceError("the loss became nan")
        record(run, event, **options)

    monkeypatch.setattr(runner.Run, "record", diverging)
    status, _, err = call("train", *RUNS["seeds"], "run_dir=here", "overwrite=true")
    assert (status, err) == (1, "error: the loss became nan; no step was saved before\n")
    assert read_losses(Path("here/seed-0")).step == 40
    assert not Path("here/seed-1/result.json").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        ("train model=bigram train.seeds=2", 2, "train.seeds=2 needs a model that a seed changes, not bigram"),
        ("train train.seeds=0", 2, "train.seeds=0 is out of range"),
        (
            "train train.seeds=2 run_dir=RUN/again",
            1,
            "holds a run; many runs need a folder of their own: use another run_dir=",
        ),
        ("evaluate run_dir=RUN/seeds", 1, "holds several runs; name one, such as"),
        ("compare", 2, "name 2 to 26 runs to compare, not 0"),
        ("compare RUN/again", 2, "name 2 to 26 runs to compare, not 1"),
        ("compare RUN/again nowhere", 1, "there is no run in"),
        ("compare RUN/again trials/rate=1", 1, "there is no run in"),
        ("compare RUN/again RUN/other", 1, "text=FILE compares both on one text"),
        ("compare RUN/again RUN/seeds resolution=0", 2, "resolution=0.0 is out of range"),
        ("compare RUN/again RUN/seeds strde=3", 2, "unknown option 'strde'; did you mean stride?"),
        ("compare RUN/again RUN/position stride=7", 2, "stride=7 is longer than the block of 6"),
        ("compare RUN/again RUN/seeds picture=x.pdf", 1, "a picture is an .svg or .png file, not x.pdf"),
        ("compare RUN/again RUN/seeds picture=no/x.svg", 1, "there is no folder"),
        ("compare MIXED RUN/again", 1, "does not hold seeds of one recipe: step is 40 in seed-0, 400 in seed-5"),
        ("sweep", 2, "no option has several values"),
        ("sweep train.steps=5", 2, "no option has several values"),
        ("sweep data.path=a,b", 2, "no option has several values"),
        ("sweep data.path=a,b", 2, "and data.path= cannot have them"),
        ("sweep train.steps=5,5", 2, "has a value twice"),
        ("sweep optimizer.learning_rate=1e-3,0.001", 2, "two combinations of the sweep are the same"),
        ("sweep train.steps=5,", 2, "has a value twice, or an empty one"),
        ("sweep train.steps=5,many", 2, "train.steps=many is not an integer"),
        ("sweep data.seed=1,2 data=synthetic", 2, "data.seed=1,2 cannot have several values in a sweep"),
        ("sweep data=pydocs,shakespeare", 2, "data=pydocs,shakespeare cannot have several values in a sweep"),
        ("sweep train.steps=1,2 train.grow_from=x", 2, "leave out model=mixture and train.grow_from="),
        ("sweep train.steps=5,6 run_dir=.", 1, ". holds other files (notes.txt); use another run_dir="),
        ("train train.seeds=2 run_dir=.", 1, ". holds other files (notes.txt); use another run_dir="),
        ("sweep train.seed=1,2", 2, "train.seed=1,2 cannot have several values in a sweep"),
        ("sweep model=babygpt,babygtp", 2, "unknown model 'babygtp'; did you mean babygpt?"),
        ("sweep train.steps=5,6 run_dir=RUN/again", 1, "holds a run; many runs need a folder of their own"),
    ],
)
def test_bad_input_gets_one_sentence(call, runs, tmp_path, arguments, status, sentence):
    if "MIXED" in arguments:
        shutil.copytree(runs("seeds") / "seed-0", tmp_path / "MIXED" / "seed-0")
        shutil.copytree(runs("long") / "seed-1", tmp_path / "MIXED" / "seed-5")
    (tmp_path / "notes.txt").write_text("mine")
    named = re.sub(r"RUN/(\w+)", lambda match: str(runs(match[1])), arguments)
    found, out, err = call(*named.split())
    assert found == status
    assert "seeds" in arguments or out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert sentence in err


def test_a_better_recipe_is_called_better_from_both_sides(compared):
    for names, better in ((("seeds", "long"), "B"), (("long", "seeds"), "A")):
        found = compared(*names)["comparisons"][0]
        assert found["better"] == better
        assert found["verdict"].startswith(f"{better} is better by ")
        assert abs(found["difference"]) > found["half_width"]
        assert found["paired_by_seed"]
        assert "train.steps" not in found["differing_options"]
        assert found["differing_options"]["step"] == [40, 400][:: 1 if better == "B" else -1]


def test_the_losses_are_those_of_evaluate(compared, call, runs):
    result = compared("position", "counted")
    for row, folder in zip(result["runs"], (runs("position") / "seed-0", runs("counted")), strict=True):
        status, out, _ = call("evaluate", f"run_dir={folder}", "split=val", "format=json")
        assert status == 0
        expected = json.loads(out)["splits"]["val"]
        assert row["losses"][0] == pytest.approx(expected["nats_per_token"], rel=1e-6)
        if row["seeds"] == [0]:
            assert row["bits_per_byte"] == pytest.approx(expected["bits_per_byte"], rel=1e-6)
            assert result["ngram"] == pytest.approx(expected["ngram_baseline"])
    assert result["tokens"] == 29_999


def test_runs_that_differ_only_in_their_seed_are_not_distinguishable(compared):
    found = compared("seeds", "again")["comparisons"][0]
    assert found["better"] is None
    assert found["verdict"].startswith("not distinguishable: they differ only in their seed")
    assert compared("seeds", "seeds")["comparisons"][0]["difference"] == 0


def test_a_mixture_of_networks_varies_with_their_seeds(call, compared, runs, tmp_path):
    parts = f"model.parts={runs('again')},{runs('counted')}"
    assert call("train", "model=mixture", *SYNTHETIC, parts, "run_dir=mixed")[0] == 0
    assert "use train.seeds=4" in compared("counted", "again")["comparisons"][0]["verdict"]
    found = compared("counted", tmp_path / "mixed")["comparisons"][0]
    assert found["standard_error_of_seeds"] is None
    assert found["better"] is None or "this model of" in found["verdict"]
    assert found["better"] is None or "give its parts several seeds" in found["verdict"]


def test_an_infinite_loss_is_worse_than_any_other(call, compared, runs, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("ab" * 5000 + "aabb" * 20)  # only the validation split has aa
    for smoothing in (0, 1):
        options = ("model=bigram", f"data.path={path}", f"model.smoothing={smoothing}", f"run_dir={smoothing}")
        assert call("train", *options)[0] == 0
    for names, better in ((("0", "1"), "B"), (("1", "0"), "A")):
        found = compared(*(tmp_path / name for name in names))["comparisons"][0]
        assert found["better"] == better
        assert found["verdict"] == f"{better} is better: the loss of {'AB'[better == 'A']} is infinite or NaN"
    both = compared(tmp_path / "0", tmp_path / "0")["comparisons"][0]
    assert both["verdict"] == "not distinguishable: both losses are infinite or NaN"
    path.write_text("ab" * 4000 + "aabb" * 20 + "ab" * 460)  # only what trials are judged on has aa
    status, out, _ = call("sweep", "model=bigram", f"data.path={path}", "model.smoothing=0,1", "run_dir=swept")
    assert (status, "best      model.smoothing=1" in out) == (0, True)


def test_runs_of_other_texts_are_other_recipes(compared, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("abcde" * 4000)
    found = compared("again", "other", text=path)
    assert "text" in found["comparisons"][0]["differing_options"]
    assert "differ only in their seed" not in found["comparisons"][0]["verdict"]


def test_seeds_of_another_length_are_not_taken_for_these(call, runs, tmp_path):
    shutil.copytree(runs("seeds"), tmp_path / "here")
    status, _, err = call("train", *RUNS["seeds"], "train.steps=30", "run_dir=here")
    assert (status, "is trained for 40 steps, not 30; use another run_dir=" in err) == (1, True)
    status, _, err = call("train", *RUNS["seeds"], "train.seeds=4", "train.eval_tokens=9", "run_dir=here")
    assert status == 0  # every token of a v1 is scored, whatever eval_tokens says
    status, out, _ = call("train", *RUNS["seeds"], "train.steps=30", "run_dir=here", "overwrite=true")
    assert (status, out.count("trained before")) == (0, 0)
    assert babyjax.load_run(tmp_path / "here" / "seed-2").step == 30


@pytest.mark.slow
def test_other_tokenizers_are_compared_in_bits_per_byte(compared):
    result = compared("bytes", "long", "counted")
    assert result["unit"] == "bits per byte"
    assert [found["level"] for found in result["comparisons"]] == [0.975, 0.975]
    assert all(row["mean"] == pytest.approx(row["bits_per_byte"]) for row in result["runs"])
    assert result["comparisons"][1]["better"] == "C"
    assert "one seed says little" in result["comparisons"][0]["verdict"]


def test_where_two_runs_differ(compared, call, runs, tmp_path):
    result = compared("again", "counted")
    found = result["comparisons"][0]
    shares = {row["token"]: row["share"] for row in found["tokens"]}
    assert set(shares) == set("abcde")
    assert sum(shares.values()) == pytest.approx(found["difference"])
    assert sum(row["times"] for row in found["tokens"]) == result["tokens"]
    largest = max(abs(b - a) for a, b in (place["nats"] for place in found["places"]))
    per_token = tmp_path / "nats.npz"
    nats = []
    for name in ("again", "counted"):
        call("evaluate", f"run_dir={runs(name)}", "split=val", f"per_token={per_token}")
        nats.append(np.load(per_token)["val"])
    assert largest == pytest.approx(np.abs(nats[0] - nats[1]).max(), rel=1e-4)


def test_gains_that_round_to_nothing_are_not_listed():
    tokens = [{"token": "a", "times": 9, "share": 0.2}, {"token": "b", "times": 9, "share": 0.00004}]
    found = {"runs": ["A", "B"], "tokens": tokens, "places": []}
    assert _differences(found) == ["  A gains most on 'a' 0.2000 nats per token of the text"]


def test_the_largest_gains_are_listed_first_and_places_without_one_not():
    shares = {"z": 0.0001, "J": 0.0003, " ": 0.1263, "e": 0.0646, "o": 0.0582, "t": 0.0562, "d": 0.0459, "q": -0.001}
    tokens = [{"token": token, "times": 9, "share": share} for token, share in shares.items()]
    places = [{"before": "x", "token": "s", "nats": [0.501, 0.502]}]
    found = _differences({"runs": ["A", "B"], "tokens": tokens, "places": places})
    listed = "' ' 0.1263, 'e' 0.0646, 'o' 0.0582, 't' 0.0562, 'd' 0.0459"
    assert found == [
        "  B gains most on 'q' 0.0010 nats per token of the text",
        f"  A gains most on {listed} nats per token of the text",
    ]


def test_places_that_look_the_same_are_listed_once():
    pair = [(f"{start} and so it went on, day after day", "s", [3.0 - 0.1 * start, 1.0]) for start in range(3)]
    places = [{"before": before, "token": token, "nats": nats} for before, token, nats in (*pair, ("a", "b", [2, 1]))]
    first, second = _differences({"runs": ["A", "B"], "tokens": [], "places": places})
    assert first == "  B knows 's' after 'd so it went on, day after day' (A, B: 3.00, 1.00 nats)"
    assert second == "  B knows 'b' after 'a' (A, B: 2.00, 1.00 nats)"


def test_a_comparison_tells_how_much_of_each_run_is_done(runs):
    told = []
    paths = [str(runs(name)) for name in ("again", "counted")]
    babyjax.compare_runs(paths, progress=lambda what, share: told.append((what, share)))
    assert [what for what, share in told if share == 1] == [f"evaluating {runs(name)}" for name in ("again", "counted")]


def test_the_verdict_is_printed_and_drawn(call, runs):
    status, out, _ = call("compare", str(runs("seeds")), str(runs("position")), "picture=compared.svg")
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == "on synthetic: 29,999 tokens, 29,999 bytes of the validation split"
    assert lines[3].startswith("A  ")
    assert "(babygpt, step 40, 3 seeds)" in lines[3]
    assert any(line.startswith(("A is better by", "B is better by", "not distinguishable")) for line in lines)
    assert any("they differ in" in line and "model.position (none, learned)" in line for line in lines)
    texts = "".join(ET.parse("compared.svg").getroot().itertext())
    assert "babygpt" in texts or Path("compared.svg").stat().st_size > 10_000


def test_a_text_of_ones_own_settles_it_too(compared, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("abcde" * 3000)
    assert compared("again", "other", text=path)["corpus"] == "mine"


def test_a_sweep_finds_the_best_and_trains_it_with_seeds(call):
    arguments = (*TINY, "optimizer.learning_rate=1e-6,1e-1,1e6", "model.n_embd=2,4", "run_dir=here", "train.seeds=2")
    status, out, err = call("sweep", *arguments)
    assert (status, err) == (0, "")
    result = json.loads(Path("here/sweep.json").read_text())
    diverged = {row["options"]["optimizer.learning_rate"] for row in result["trials"] if row["held_out"] is None}
    assert diverged == {"1e6"}
    best = min(row["held_out"] for row in result["trials"] if row["held_out"] is not None)
    assert {"options": result["best"], "held_out": best} in result["trials"]
    assert result["best"]["optimizer.learning_rate"] == "1e-1"
    assert "diverged" in out
    assert Path("here/sweep.svg").exists()
    with pytest.raises(RunError, match=r"holds several runs; name one, such as .*/winner/.*/seed-0"):
        babyjax.load_run("here")
    winner = babyjax.load_run(f"here/winner/{name_of(result['best'])}/seed-1")
    assert winner.config.optimizer.learning_rate == 0.1
    assert winner.manifest.corpus.characters == 300_000
    assert len(result["winner"]) == 2
    # Trials have not seen the validation split, nor what they are judged on.
    trial = babyjax.load_run("here/trials/model.n_embd=2,optimizer.learning_rate=1e-1")
    assert trial.corpus().text == winner.corpus().text[:270_000]
    status, out, _ = call("sweep", *arguments)
    assert status == 0
    assert out.count("trained before") == 6  # four trials and two seeds


def test_models_of_other_kinds_are_swept_together(call):
    """Their options are read once, so they may come from a pipe."""
    read, write = os.pipe()
    os.write(write, b"train: {steps: 5}")
    os.close(write)
    status, out, err = call("sweep", "model=bigram,babygpt", *SYNTHETIC, f"config=/dev/fd/{read}", "run_dir=here")
    os.close(read)
    assert (status, err) == (0, "")
    assert babyjax.load_run("here/trials/model=babygpt").step == 5
    assert "best      model=bigram" in out
    assert "over 1 seeds" not in out


def test_combinations_are_the_product_of_the_lists():
    found = combinations({"optimizer": "adamw,lion", "train.steps": "5,6,7", "train.batch_size": "8"})
    assert len(found) == 6
    assert found[0] == {"optimizer": "adamw", "train.steps": "5"}
    assert found[-1] == {"optimizer": "lion", "train.steps": "7"}
    with pytest.raises(ConfigError, match="too many"):
        combinations({f"train.{name}": ",".join(map(str, range(1, 60))) for name in ("steps", "eval_interval")})


def test_damaged_results_are_named(runs, tmp_path):
    folder = Path(shutil.copytree(runs("seeds") / "seed-0", tmp_path / "seed-0"))
    (folder / "result.json").write_text("{")
    with pytest.raises(RunError, match="cannot read the final losses in"):
        read_losses(folder)

"""The three doors, as their users meet them."""

import json
import math
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from babyjax.training.run import RunDirectory

QUICK = ("train.steps=60", "train.eval_interval=20", "checkpoint.interval=30")


@pytest.fixture
def text(tmp_path):
    """A text file of the user's own, in Chinese, with the user's own line ends."""
    path = tmp_path / "诗 词.txt"
    path.write_bytes(("明月几时有?\r\n把酒问青天。\r\n" * 40).encode())
    return path


@pytest.mark.parametrize("model", ["bigram", "babygpt"])
def test_train_evaluate_sample_on_ones_own_text(door, knock, tmp_path, text, model):
    run_dir = tmp_path / "my runs" / model
    trained = door("train", f"model={model}", f"data.path={text.name}", f"run_dir={run_dir}", *QUICK)
    assert (trained.returncode, trained.stderr) == (0, "")
    assert f"{model} on 诗 词: 560 characters, vocabulary 13" in trained.stdout
    assert "floor 0." in trained.stdout
    assert f" -m babyjax.sample 'run_dir={run_dir}'" in trained.stdout
    assert "\x1b" not in trained.stdout

    text.unlink()  # the run needs only its own folder
    evaluated = door("evaluate", f"run_dir={run_dir}", "format=json")
    assert (evaluated.returncode, evaluated.stderr) == (0, "")
    result = json.loads(evaluated.stdout)
    assert (result["model"], result["vocab_size"]) == (model, 13)
    assert set(result["splits"]) == {"train", "val"}
    train = result["splits"]["train"]
    assert train["tokens"] == 503
    assert train["nats_per_token"] > train["bigram_floor"] > 0
    assert train["perplexity"] == pytest.approx(math.exp(train["nats_per_token"]))

    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 61 if model == "babygpt" else 2))
    assert rows[-1]["val_loss"] == pytest.approx(result["splits"]["val"]["nats_per_token"])
    assert f"train {train['nats_per_token']:.4f}" in trained.stdout

    arguments = (
        f"run_dir={run_dir}",
        "prompt=明月",
        "max_new_tokens=20",
        "num_samples=2",
        "top_k=5",
        "temperature=0.5",
    )
    sampled = door("sample", *arguments)
    assert (sampled.returncode, sampled.stderr) == (0, "")
    samples = sampled.stdout.removesuffix("\n").split("\n\n---\n\n")
    assert len(samples) == 2
    assert all(sample.startswith("明月") and len(sample) == 22 for sample in samples)
    assert knock("sample", *arguments) == (0, sampled.stdout, "")
    assert "\nval   " in knock("evaluate", f"run_dir={run_dir}")[1]


def test_the_default_corpus_needs_no_network(knock, tmp_path):
    status, out, err = knock("train", "model=bigram", "model.counting=windows", "train.steps=100")
    assert (status, err) == (0, "")
    assert "to count 25,600 pairs" in out
    assert (tmp_path / "checkpoints" / "bigram-pydocs" / "config.yaml").is_file()


def test_the_synthetic_source_and_bytes(knock):
    options = ("data=synthetic", "data.states=4", "data.length=5000", "data.tokenizer=byte", "run_dir=here")
    status, out, err = knock("train", *options, "model.n_embd=4", *QUICK)
    assert (status, err) == (0, "")
    assert "vocabulary 256" in out
    assert "source " in out
    assert len(knock("sample", "run_dir=here", "prompt=任何")[1]) > 100


def test_the_same_command_continues_and_another_is_refused(knock, tmp_path):
    options = ("data=synthetic", "data.length=3000", "run_dir=here", *QUICK)
    assert knock("train", *options, "train.steps=45")[0] == 0
    metrics = tmp_path / "here" / "metrics.jsonl"
    begun = metrics.read_text().splitlines()

    assert "trained already, to step 45" in knock("train", *options, "train.steps=45")[1]
    status, out, _ = knock("train", *options)
    assert status == 0
    assert "continuing from step 45" in out
    rows = metrics.read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, 61))
    assert rows[:44] == begun[:44]

    status, out, err = knock("train", *options, "model.n_embd=5")
    assert (status, out) == (1, "")
    assert "holds another run: model.n_embd is 32 there, 5 here" in err
    assert metrics.read_text().splitlines() == rows
    status, out, _ = knock("train", *options, "model.n_embd=5", "overwrite=true")
    assert status == 0
    assert "continuing" not in out


def test_a_checkpoint_tells_only_losses_evaluated_at_its_step(knock, tmp_path):
    assert knock("train", "data=synthetic", "data.length=3000", "run_dir=here", *QUICK)[0] == 0
    checkpoints = RunDirectory(tmp_path / "here").checkpoints
    assert checkpoints.load(30).about["losses"] == {}
    assert set(checkpoints.load(60).about["losses"]) == {"train", "val"}
    assert checkpoints.best() == 60


def test_a_run_that_never_reached_a_checkpoint_is_no_obstacle(knock, tmp_path):
    assert knock("train", "data=synthetic", "data.length=3000", "run_dir=here", *QUICK)[0] == 0
    for step in (tmp_path / "here" / "steps").iterdir():
        shutil.rmtree(step)
    status, out, _ = knock("train", "data=synthetic", "data.length=3000", "run_dir=here", "model.n_embd=3", *QUICK)
    assert status == 0
    assert "continuing" not in out


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_is_saved_and_goes_on(door, tmp_path, number, status):
    options = ("data=synthetic", "data.length=3000", "run_dir=here", "checkpoint.interval=1000000", "overwrite=true")
    with subprocess.Popen(
        [sys.executable, "-m", "babyjax.train", *options, "train.steps=2000000000"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        metrics = tmp_path / "here" / "metrics.jsonl"
        while not metrics.exists() or metrics.stat().st_size == 0:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (status, "")
    last = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert f"stopped  after step {last:,}; it is saved" in stdout
    command = stdout.splitlines()[-1].removeprefix("next     ")
    python, *arguments = shlex.split(command)
    assert shutil.which(python) == sys.executable
    assert arguments == ["-m", "babyjax.train", *options[:-1], "train.steps=2000000000"]
    resumed = door("train", *options[:-1], f"train.steps={last + 10}")
    assert f"continuing from step {last:,}" in resumed.stdout
    assert resumed.returncode == 0


SYNTHETIC = ("data=synthetic", "data.length=3000", "run_dir=here")


def rows_of(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_training_on_counts_is_a_run_like_any_other(knock, tmp_path):
    counts = (*SYNTHETIC, "trainer=counts", "model.n_embd=6", "trainer.smoothing=0.5")
    status, out, err = knock("train", *counts)
    assert (status, err) == (0, "")
    rows = rows_of(tmp_path / "here")
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert all({"train_loss", "val_loss", "start", "smoothing"} <= set(row) for row in rows)
    assert rows[0]["train_loss"] > rows[-1]["train_loss"]
    assert "known    best of 4 starts" in out
    assert "smoothed by 0.5 a cell" in out

    result = json.loads(knock("evaluate", "run_dir=here", "format=json")[1])["splits"]
    assert result["train"]["nats_per_token"] == pytest.approx(rows[-1]["train_loss"], abs=1e-6)
    assert result["val"]["nats_per_token"] == pytest.approx(rows[-1]["val_loss"], abs=1e-6)
    assert len(knock("sample", "run_dir=here", "max_new_tokens=10")[1]) > 10
    assert "is trained already" in knock("train", *counts)[1]
    assert rows_of(tmp_path / "here") == rows
    status, _, err = knock("train", *SYNTHETIC, "model.n_embd=6")
    assert status == 1
    assert "trainer is counts there, sgd here" in err


def test_a_penalty_without_a_bias_ends_with_a_certificate(knock):
    out = knock("train", *SYNTHETIC, "trainer=counts", "model.bias=false", "trainer.penalty=0.01")[1]
    known = next(line for line in out.splitlines() if line.startswith("known"))
    bound = re.fullmatch(r"known    within (\S+) nats of the global optimum of the smoothed and penalised loss", known)
    assert bound
    assert float(bound[1]) <= 1e-6


@pytest.mark.parametrize("what", ["smoothing", "penalty"])
def test_validation_chooses(knock, tmp_path, what):
    out = knock("train", *SYNTHETIC, "trainer=counts", "model.bias=false", f"trainer.choose={what}")[1]
    rows = rows_of(tmp_path / "here")
    assert rows[-1]["val_loss"] == min(row["val_loss"] for row in rows)
    value = re.search(rf"chosen   {what}=(\S+), by validation", out)
    assert value
    assert float(value[1]) in {row[what] for row in rows}


@pytest.mark.parametrize("trainer", ["sgd", "counts"])
def test_every_babygpt_run_ends_with_a_ledger(knock, tmp_path, trainer):
    options = (*SYNTHETIC, "model.n_embd=3", f"trainer={trainer}", "train.steps=30", "train.batch_size=4")
    out = knock("train", *options)[1]
    last = rows_of(tmp_path / "here")[-1]
    ledger = last["ledger"]
    train = ledger["entropy"] + ledger["approximation"] + ledger["optimisation"]
    assert train == pytest.approx(last["exact_train_loss"] if trainer == "sgd" else last["train_loss"])
    assert train + ledger["generalisation"] == pytest.approx(last["val_loss"])
    for sign, term in (("+", "approximation"), ("+", "optimisation"), ("+", "generalisation"), (" ", "entropy")):
        assert f"  {sign} {ledger[term]:7.4f}  {term}" in out

    # One stopped before its ledger gets it when it is started again.
    metrics = tmp_path / "here" / "metrics.jsonl"
    whole = metrics.read_text()
    rows = whole.splitlines(keepends=True)
    del last["ledger"]
    metrics.write_text("".join(rows[:-1]) + json.dumps(last) + "\n")
    assert "where the loss goes" in knock("train", *options)[1]
    assert metrics.read_text() == whole


def test_a_bigram_has_no_ledger(knock, tmp_path):
    assert "where the loss goes" not in knock("train", *SYNTHETIC, "model=bigram")[1]
    assert "ledger" not in rows_of(tmp_path / "here")[-1]


def test_without_a_prompt_or_a_line_break_sampling_starts_from_the_first_token(knock):
    assert knock("train", "model=bigram", "data=synthetic", "data.length=3000", "run_dir=here")[0] == 0
    status, out, _ = knock("sample", "run_dir=here")
    assert (status, len(out)) == (0, 301)


def test_names_are_shown_as_they_are(knock):
    options = ("model=bigram", "data=synthetic", "data.length=3000", "run_dir=runs:dog:[red]1")
    assert "kept in  runs:dog:[red]1\n" in knock("train", *options)[1]


def test_ctrl_c_ends_a_long_sample_at_once(door, tmp_path):
    options = ("model=bigram", "data=synthetic", "data.length=3000", "run_dir=here")
    assert door("train", *options).returncode == 0
    program = [sys.executable, "-m", "babyjax.sample", "run_dir=here", "max_new_tokens=500000000"]
    with subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(4)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=5) == ("", "")
    assert process.returncode == -signal.SIGINT


def test_debugging_shows_the_traceback(door):
    assert "Traceback" in door("sample", "run_dir=nowhere", BABYJAX_DEBUG="1").stderr


@pytest.mark.parametrize(
    ("name", "arguments", "shows"),
    [
        ("train", [], "model.n_embd=32 "),
        ("train", ["model=bigram"], "model.smoothing=1.0 "),
        ("sample", [], "max_new_tokens=300 "),
        ("evaluate", [], "format=text "),
    ],
)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_shows_the_options(knock, name, arguments, shows, flag):
    code, out, err = knock(name, *arguments, flag)
    assert (code, err) == (0, "")
    assert f"usage: python -m babyjax.{name}" in out
    assert shows in out


def test_help_starts_no_jax():
    program = (
        "import sys, runpy\nsys.argv = ['train', '--help']\n"
        "try: runpy.run_module('babyjax.train', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert 'jax' not in sys.modules and 'numpy' not in sys.modules, 'imported'"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")

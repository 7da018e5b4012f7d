"""Training, evaluating and sampling as users meet them."""

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import pytest

from babyjax import task
from babyjax.errors import RunError
from babyjax.models import ops
from babyjax.runs.manifest import read_manifest
from babyjax.train import main as train

SYNTHETIC = ("data=synthetic", "data.length=2000", "data.states=5")
TINY = (*SYNTHETIC, "model.n_embd=4", "train.batch_size=4")
QUICK = (*TINY, "train.steps=60", "train.eval_interval=20", "checkpoint.interval=30")
BIGRAM = ("model=bigram", *SYNTHETIC)
PYTHON = [sys.executable, "-m"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 60 steps, to be copied."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train([*QUICK, f"run_dir={folder}"]) == 0
    return folder


@pytest.fixture
def here(tmp_path, trained):
    """A copy of a run of 60 steps, in the folder `here` of the working directory."""
    return Path(shutil.copytree(trained, tmp_path / "here"))


@pytest.fixture
def text(tmp_path):
    """A text file in Chinese, with the line ends of another system."""
    path = tmp_path / "诗 词.txt"
    path.write_bytes(("明月几时有?\r\n把酒问青天。\r\n" * 40).encode())
    return path


def rows_of(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def samples_of(out):
    return out.removesuffix("\n").split("\n\n---\n\n")


@pytest.mark.slow
def test_train_evaluate_sample_on_ones_own_text(command, call, tmp_path, text):
    run_dir = tmp_path / "my runs" / "babygpt"
    options = (f"data.path={text.name}", f"run_dir={run_dir}", *QUICK[len(SYNTHETIC) :])
    trained = command("train", "model=babygpt", *options)
    assert (trained.returncode, trained.stderr) == (0, "")
    assert "babygpt on 诗 词: 560 characters, vocabulary 13" in trained.stdout
    assert "bigram entropy 0." in trained.stdout
    assert f"sample 'run_dir={run_dir}'" in trained.stdout
    assert "\x1b" not in trained.stdout

    text.unlink()  # the run needs only its own folder
    evaluated = subprocess.run(
        [*PYTHON, "babyjax.evaluate", f"run_dir={run_dir}", "format=json"], capture_output=True, text=True, check=False
    )
    assert (evaluated.returncode, evaluated.stderr) == (0, "")
    result = json.loads(evaluated.stdout)
    assert (result["model"], result["vocab_size"]) == ("babygpt", 13)
    assert set(result["splits"]) == {"train", "val"}
    losses = result["splits"]["train"]
    assert losses["tokens"] == 503
    assert losses["nats_per_token"] > losses["bigram_baseline"] > 0
    assert losses["perplexity"] == pytest.approx(math.exp(losses["nats_per_token"]))

    rows = rows_of(run_dir)
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert rows[-1]["val_loss"] == pytest.approx(result["splits"]["val"]["nats_per_token"])
    assert f"train {losses['nats_per_token']:.4f}" in trained.stdout

    more = ("max_new_tokens=20", "num_samples=2", "top_k=5", "temperature=0.5")
    arguments = (f"run_dir={run_dir}", "prompt=明月", *more)
    sampled = command("sample", *arguments)
    assert (sampled.returncode, sampled.stderr) == (0, "")
    samples = samples_of(sampled.stdout)
    assert len(samples) == 2
    assert all(sample.startswith("明月") and len(sample) == 22 for sample in samples)
    assert "\nval   " in call("evaluate", f"run_dir={run_dir}")[1]


def test_a_bigram_is_counted_evaluated_and_sampled(call, tmp_path, text):
    status, out, err = call("train", "model=bigram", f"data.path={text.name}", "run_dir=my runs/bigram")
    assert (status, err) == (0, "")
    assert "bigram on 诗 词: 560 characters, vocabulary 13" in out
    assert "decomposition" not in out
    run_dir = tmp_path / "my runs" / "bigram"
    assert [row["step"] for row in rows_of(run_dir)] == [1]
    assert not (run_dir / "decomposition.json").exists()
    splits = json.loads(call("evaluate", "run_dir=my runs/bigram", "format=json")[1])["splits"]
    recorded = json.loads((run_dir / "result.json").read_text())["losses"]
    for name, losses in splits.items():
        assert losses["nats_per_token"] == pytest.approx(recorded[name]["nats_per_token"])
    assert splits["train"]["nats_per_token"] > splits["train"]["bigram_baseline"]
    assert splits["val"]["nats_per_token"] == pytest.approx(splits["val"]["bigram_baseline"])
    samples = samples_of(call("sample", "run_dir=my runs/bigram", "prompt=明月", "num_samples=2", "top_p=0.9")[1])
    assert [(sample[:2], len(sample)) for sample in samples] == [("明月", 302)] * 2


def test_a_network_that_looks_ahead_is_recorded_as_such(call, tmp_path, text, monkeypatch):
    def attend(q, k, v, *rest):
        return jnp.broadcast_to(v.mean(axis=1, keepdims=True), q.shape)

    arguments = ("model=babygpt-v3-attention", "model.n_embd=10", "model.block_size=9", "train.steps=3")
    monkeypatch.setattr(ops, "attend", attend)
    status, out, err = call("train", *arguments, f"data.path={text.name}", "run_dir=ahead")
    assert status == 0
    assert "verified  5 of 7 checks passed on 55 validation tokens" in out
    assert err.startswith("warning: causal, length failed when ahead was verified on 55 validation tokens; ")
    assert err.endswith("babyjax evaluate run_dir=ahead verify=true says more\n")
    assert err.count("\n") == 1
    verification = json.loads((tmp_path / "ahead" / "result.json").read_text())["verification"]
    assert verification["passed"] is False
    assert [name for name, check in verification["checks"].items() if check["passed"] is False] == ["causal", "length"]


def test_a_run_that_memory_does_not_let_verify_is_kept(call, tmp_path, text, monkeypatch):
    def verify(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(task, "verify_sample", verify)
    status, out, err = call("train", "model=bigram", f"data.path={text.name}", "run_dir=run")
    assert (status, "verified" in out) == (0, False)
    assert err.startswith("warning: run is not verified: out of memory")
    assert list(json.loads((tmp_path / "run" / "result.json").read_text())) == ["step", "losses"]
    assert call("evaluate", "run_dir=run")[0] == 0


def test_the_default_corpus_needs_no_network(call, tmp_path):
    status, out, err = call("train", "model=bigram", "model.counting=windows", "train.steps=100")
    assert (status, err) == (0, "")
    assert "25,600 pairs" in out
    assert (tmp_path / "checkpoints" / "bigram-pydocs" / "config.yaml").is_file()


@pytest.mark.parametrize(
    "tokenizer",
    [
        pytest.param(("char",), id="char", marks=pytest.mark.slow),
        pytest.param(("bpe", "data.vocab_size=300"), id="bpe"),
    ],
)
def test_a_folder_of_stories_is_learned_and_told_one_by_one(call, tokenizer):
    """An n-gram that has seen two stories many times begins at the start of one and ends with it."""
    stories = ["Es war einmal ein Müller.\n", "明月几时有？把酒问青天。"]
    Path("stories").mkdir()
    for part in range(2):
        lines = [json.dumps({"id": index, "story": stories[index % 2]}) for index in range(400)]
        Path(f"stories/{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    kind, *more = tokenizer
    options = ("model=ngram", "model.order=8", "data.path=stories", "data.field=story", f"data.tokenizer={kind}", *more)
    status, out, err = call("train", *options)
    assert (status, err) == (0, "")
    assert out.startswith(f"ngram on stories: {400 * sum(map(len, stories)) + 799:,} characters, vocabulary ")
    assert "run_dir=checkpoints/ngram-stories" in out
    told = call("sample", "run_dir=checkpoints/ngram-stories", "num_samples=8", "temperature=0.1")[1]
    assert {story.strip() for story in told.split("---")} == {story.strip() for story in stories}
    assert call("sample", "run_dir=checkpoints/ngram-stories", "prompt=Es war", "temperature=0")[1].startswith(
        stories[0]
    )


def test_the_synthetic_source_and_bytes(call):
    status, out, err = call("train", *BIGRAM, "data.tokenizer=byte", "run_dir=here")
    assert (status, err) == (0, "")
    assert "vocabulary 256" in out
    assert "source entropy " in out
    assert len(call("sample", "run_dir=here", "prompt=任何")[1]) > 100


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no /dev/fd")
def test_a_text_may_come_from_a_pipe(tmp_path):
    (tmp_path / "t.txt").write_text("ab\n" * 100)
    program = f"{sys.executable} -m babyjax train model=bigram data.path=<(cat t.txt) run_dir=here"
    ran = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (tmp_path / "here" / "corpus.txt").read_text() == "ab\n" * 100


def test_the_same_command_continues_and_another_is_refused(call, tmp_path):
    options = (*QUICK, "run_dir=here")
    assert call("train", *options, "train.steps=45")[0] == 0
    metrics = tmp_path / "here" / "metrics.jsonl"
    begun = metrics.read_text().splitlines()

    assert (
        "here is already trained (45 steps).\ntrain.steps=90 continues" in call("train", *options, "train.steps=45")[1]
    )
    status, out, _ = call("train", *options)
    assert status == 0
    assert "continuing from step 45" in out
    rows = metrics.read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, 61))
    assert rows[:45] == begun

    status, out, err = call("train", *options, "model.n_embd=5")
    assert (status, out) == (1, "")
    assert "holds another run: model.n_embd is 4 there, 5 here" in err
    assert metrics.read_text().splitlines() == rows
    assert "holds another run: train.seed is 0 there, 1 here" in call("train", *options, "train.seed=1")[2]
    status, out, _ = call("train", *options, "train.seed=1", "overwrite=true")
    assert status == 0
    assert "continuing" not in out
    assert metrics.read_text().splitlines() != rows


def test_a_run_keeps_the_few_options_that_make_it(call, here, tmp_path):
    """`config=RUN/config.yaml` trains the same again, elsewhere; where a run is belongs to no config."""
    kept = (here / "config.yaml").read_text()
    assert kept.splitlines()[0] == "model: babygpt"
    assert {line.partition(":")[0] for line in kept.splitlines()} == {
        argument.partition("=")[0] for argument in QUICK
    } | {"model"}
    assert call("train", f"config={here}/config.yaml", "run_dir=again")[0] == 0
    assert (tmp_path / "again" / "metrics.jsonl").read_bytes() == (here / "metrics.jsonl").read_bytes()
    assert (tmp_path / "again" / "config.yaml").read_text() == kept
    manifest = read_manifest(here).config
    assert (manifest["model"]["block_size"], manifest["choices"]["optimizer"]) == (8, "adamw")
    assert not {"run_dir", "overwrite"} & set(manifest)


def test_a_checkpoint_tells_only_losses_evaluated_at_its_step(here):
    losses = {checkpoint.step: set(checkpoint.losses) for checkpoint in read_manifest(here).checkpoints}
    assert losses == {30: set(), 60: {"train", "val"}}
    assert [row["step"] for row in rows_of(here) if "val_loss" in row] == [20, 40, 60]


def test_a_run_that_never_reached_a_checkpoint_is_no_obstacle(call, here):
    for step in (here / "steps").iterdir():
        shutil.rmtree(step)
    status, out, _ = call("train", *QUICK, "run_dir=here", "train.seed=1")
    assert status == 0
    assert "continuing" not in out


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_stopped_run_is_saved_and_goes_on(call, tmp_path, number, status):
    options = (*TINY, "run_dir=here", "checkpoint.interval=1000000", "overwrite=true")
    with subprocess.Popen(
        [*PYTHON, "babyjax", "train", *options, "train.steps=2000000000"],
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
    last = rows_of(tmp_path / "here")[-1]["step"]
    assert f"stopped   after step {last:,}; saved" in stdout
    line = stdout.splitlines()[-1].removeprefix("next      ")
    assert shlex.split(line)[-len(options) :] == [*options[:-1], "train.steps=2000000000"]
    status, out, _ = call("train", *options[:-1], f"train.steps={last + 10}")
    assert f"continuing from step {last:,}" in out
    assert status == 0


LOST = [
    pytest.param(">&-", "it is closed", marks=pytest.mark.slow),
    pytest.param(">/dev/full", "no space left on device", marks=pytest.mark.slow),
    pytest.param("| (read line; read line)", "broken pipe", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("redirect", "reason"), LOST, ids=["closed", "full", "head"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_losing_the_console_never_loses_training(tmp_path, trained, redirect, reason):
    """The run is that of one who could write, and a sentence and the exit status say what happened."""
    program = f"set -o pipefail; {shlex.join([*PYTHON, 'babyjax', 'train', *QUICK])} run_dir=here {redirect}"
    ran = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == f"error: here is trained and saved, but showing it failed: {reason}\n"
    assert [row["step"] for row in rows_of(tmp_path / "here")] == list(range(1, 61))
    assert [checkpoint.step for checkpoint in read_manifest(tmp_path / "here").checkpoints] == [30, 60]
    assert (tmp_path / "here" / "result.json").is_file()


@pytest.mark.slow
def test_losing_the_terminal_during_training_is_survived(tmp_path):
    """A live bar is drawn by a thread, whose failure must not become a traceback."""
    master, slave = os.openpty()
    with subprocess.Popen(
        [*PYTHON, "babyjax", "train", *TINY, "train.steps=2000000000", "run_dir=here"],
        cwd=tmp_path,
        stdout=slave,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TERM": "xterm"},
    ) as process:
        os.close(slave)
        shown = b""
        while b"above entropy" not in shown:
            shown += os.read(master, 1000)
        os.close(master)
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == (None, "")
    assert process.returncode == 130
    assert read_manifest(tmp_path / "here").checkpoints[-1].step == rows_of(tmp_path / "here")[-1]["step"]


@pytest.mark.parametrize(
    ("name", "arguments"), [("sample", ("max_new_tokens=5",)), ("evaluate", ()), ("evaluate", ("format=json",))]
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_result_that_cannot_be_written_is_an_error(call, here, monkeypatch, name, arguments):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        status, _, err = call(name, "run_dir=here", *arguments)
    assert (status, err) == (1, "error: cannot write the result: No space left on device\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"JAX_COMPILATION_CACHE_DIR": "/dev/null/below"},
        {"JAX_COMPILATION_CACHE_DIR": "", "XDG_CACHE_HOME": "/dev/null"},
    ],
    ids=["given", "default"],
)
def test_a_cache_that_cannot_be_written_is_no_concern_of_the_user(command, environment):
    ran = command("train", *BIGRAM, "run_dir=here", **environment)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.slow
def test_without_a_home_directory_user_name_or_working_directory(tmp_path):
    """An unknown user of a container whose working directory was removed."""
    program = (
        "import os, pwd, sys\n"
        "def unknown(user): raise KeyError(user)\n"
        "pwd.getpwuid = pwd.getpwnam = unknown\n"
        "os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')\n"
        "from babyjax.__main__ import main\n"
        "main()"
    )
    unset = ("HOME", "JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    arguments = ("train", *BIGRAM, f"run_dir={tmp_path / 'here'}")
    ran = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (tmp_path / "here" / "result.json").is_file()


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps a working directory")
def test_a_relative_path_in_a_removed_working_directory_gets_one_sentence(call, tmp_path, monkeypatch, trained):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    status, _, err = call("train", *BIGRAM, "run_dir=here")
    assert (status, err) == (1, "error: 'here' is not a path this system can use (No such file or directory)\n")
    assert call("sample", f"run_dir={trained}", "max_new_tokens=5")[0] == 0


def test_a_device_that_does_not_exist_gets_one_sentence(command):
    ran = command("train", *BIGRAM, JAX_PLATFORMS="abacus")
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
    assert ran.stderr.startswith("error: JAX cannot start: Unable to initialize backend 'abacus'")


def test_training_on_counts_is_a_run_like_any_other(call, tmp_path):
    counts = (*SYNTHETIC, "run_dir=here", "trainer=counts", "model.n_embd=2", "trainer.smoothing=0.5")
    status, out, err = call("train", *counts)
    assert (status, err) == (0, "")
    rows = rows_of(tmp_path / "here")
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert all({"train_loss", "val_loss", "start", "smoothing"} <= set(row) for row in rows)
    assert rows[0]["train_loss"] > rows[-1]["train_loss"]
    assert "known     best of 4 restarts" in out
    assert "smoothed  by 0.5 per cell" in out

    result = json.loads(call("evaluate", "run_dir=here", "format=json")[1])["splits"]
    assert result["train"]["nats_per_token"] == pytest.approx(rows[-1]["train_loss"], abs=1e-6)
    assert result["val"]["nats_per_token"] == pytest.approx(rows[-1]["val_loss"], abs=1e-6)
    assert len(call("sample", "run_dir=here", "max_new_tokens=10")[1]) > 10
    assert "here is already trained" in call("train", *counts)[1]
    assert rows_of(tmp_path / "here") == rows
    status, _, err = call("train", *SYNTHETIC, "run_dir=here", "model.n_embd=2")
    assert status == 1
    assert "trainer is counts there, sgd here" in err


def test_a_penalty_without_a_bias_ends_with_a_certificate(call):
    penalty = ("trainer=counts", "model.head_bias=false", "trainer.penalty=0.01")
    out = call("train", *SYNTHETIC, "run_dir=here", *penalty)[1]
    known = next(line for line in out.splitlines() if line.startswith("known"))
    bound = re.fullmatch(
        r"known     within (\S+) nats of the global optimum of the smoothed and penalized loss at any width", known
    )
    assert bound
    assert float(bound[1]) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("what", ["smoothing", "penalty"])
def test_validation_chooses(call, tmp_path, what):
    options = ("trainer=counts", "model.n_embd=2", "model.head_bias=false", f"trainer.choose={what}")
    out = call("train", *SYNTHETIC, "run_dir=here", *options)[1]
    rows = rows_of(tmp_path / "here")
    assert rows[-1]["val_loss"] == min(row["val_loss"] for row in rows)
    value = re.search(rf"chosen    {what}=(\S+), by validation", out)
    assert value
    assert any(float(value[1]) == pytest.approx(row[what], rel=1e-5) for row in rows)


@pytest.mark.parametrize("trainer", ["sgd", pytest.param("counts", marks=pytest.mark.slow)])
def test_every_run_of_v1_ends_with_the_decomposition_of_its_loss(call, tmp_path, trainer):
    options = (
        *SYNTHETIC,
        "run_dir=here",
        "model.n_embd=2",
        f"trainer={trainer}",
        "train.steps=60",
        "train.batch_size=4",
    )
    out = call("train", *options)[1]
    path = tmp_path / "here" / "decomposition.json"
    terms = json.loads(path.read_text())
    losses = json.loads((tmp_path / "here" / "result.json").read_text())["losses"]
    loss = terms["entropy"] + terms["approximation"] + terms["optimization"]
    assert loss == pytest.approx(losses["train"]["nats_per_token"])
    assert loss + terms["generalization"] == pytest.approx(losses["val"]["nats_per_token"])
    assert min(terms["approximation"], terms["optimization"]) >= 0
    for sign, term in (("+", "approximation"), ("+", "optimization"), ("+", "generalization"), (" ", "entropy")):
        assert f"  {sign} {terms[term]:7.4f}  {term}" in out

    # A run stopped before its decomposition gets it when it is started again.
    whole = path.read_text()
    path.unlink()
    assert "loss decomposition, nats/token" in call("train", *options)[1]
    assert path.read_text() == whole
    assert "decomposition" not in call("train", *options)[1]


def test_without_a_prompt_or_a_line_break_sampling_starts_from_the_first_token(call, here):
    status, out, _ = call("sample", "run_dir=here")
    assert (status, len(out)) == (0, 301)


def test_names_are_shown_as_they_are(call):
    assert "saved to  runs:dog:{red}1\n" in call("train", *BIGRAM, "run_dir=runs:dog:{red}1")[1]


def test_ctrl_c_ends_a_long_sample_at_once(tmp_path, here):
    """While the program runs, which takes hours: once the process has worked for longer than starting takes."""
    program = [*PYTHON, "babyjax", "sample", "run_dir=here", "max_new_tokens=500000000"]
    with subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(4)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        try:
            assert process.communicate(timeout=20) == ("", "")
        finally:
            process.kill()
    assert process.returncode == -signal.SIGINT


def test_debugging_shows_the_traceback(call, monkeypatch):
    monkeypatch.setenv("BABYJAX_DEBUG", "1")
    with pytest.raises(RunError):
        call("sample", "run_dir=nowhere")


@pytest.mark.parametrize(
    ("name", "arguments", "shows"),
    [
        ("train", [], "model.n_embd=32 "),
        ("train", ["model=bigram"], "model.smoothing=1.0 "),
        ("train", ["model=gpt-tiny"], "optimizer.schedule=cosine "),
        ("sample", [], "max_new_tokens=300 "),
        ("evaluate", [], "format=text "),
    ],
)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_shows_the_options(call, name, arguments, shows, flag):
    code, out, err = call(name, *arguments, flag)
    assert (code, err) == (0, "")
    assert f"usage: babyjax {name}" in out
    assert f"  {shows}" in out

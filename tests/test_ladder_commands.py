"""The ideas of the ladder by the commands: train, continue to the bit, evaluate, sample."""

import io
import json
import shutil
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest
from ladder import RUNGS, mostly_slow, preset

import babyjax
from babyjax.runs.manifest import read_manifest
from babyjax.train import main as train

TEXT = "明月几时有?把酒问青天。不知天上宫阙,今夕是何年。" * 60
RUN = "run_dir=run"
# Between them these have every idea of a rung.
COMMANDED = ("babygpt", "babygpt-v2-position", "babygpt-v10-dropout", "gpt2", "qwen3-0.6b")


def options(name: str) -> list[str]:
    """A rung with all its ideas at the smallest size, and 6 steps."""
    full = preset(name)
    steps = ["train.steps=6", "train.eval_interval=2", "checkpoint.interval=2", "checkpoint.keep=9"]
    size = ["model.block_size=8", "train.batch_size=4"]
    if full.n_layer:
        heads = min(full.n_head, 4)
        size += [f"model.n_layer={min(full.n_layer, 2)}", f"model.n_head={heads}", f"model.n_embd={2 * heads}"]
        if full.n_kv_head:
            size += ["model.n_kv_head=2"]
    if full.vocab_size:
        size += ["model.vocab_size=40"]
    if name != "babygpt-v10-dropout":  # one rung has its blocks unrolled
        size += ["model.unroll=1"]
    return [f"model={name}", "data.path=词.txt", RUN, "train.eval_tokens=100", *size, *steps]


@pytest.fixture
def text(tmp_path):
    (tmp_path / "词.txt").write_text(TEXT, encoding="utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`trained(name, ...)` is the directory of a run that was trained with `options(name)` and more."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "词.txt").write_text(TEXT, encoding="utf-8")

    @cache
    def run(name: str, *more: str) -> Path:
        path = folder / "-".join([name, *more])
        with redirect_stdout(io.StringIO()):
            assert train([*options(name), f"data.path={folder / '词.txt'}", f"run_dir={path}", *more]) == 0
        return path

    return run


def rows_of(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_every_idea_is_commanded():
    def ideas(names):
        """The options of networks with their values; of numbers whether they are 0, or not given."""
        found = {(key, value) for name in names for key, value in preset(name).model_dump().items()}
        return {(key, bool(value) if isinstance(value, int | float) else value) for key, value in found}

    assert ideas(COMMANDED) == ideas(RUNGS)


@pytest.mark.parametrize("name", mostly_slow(COMMANDED, "babygpt-v2-position"))
def test_a_rung_trains_goes_on_evaluates_and_samples(call, tmp_path, text, name):
    arguments = options(name)
    status, out, err = call("train", *arguments)
    assert (status, err) == (0, "")
    assert f"{name} on 词: 1,500 characters, vocabulary 23" in out
    assert "tokens/s" in out
    assert "flop/s in matrix products" in out
    whole = rows_of(tmp_path / "run")
    assert [row["step"] for row in whole if "val_loss" in row] == [2, 4, 6]
    # The run cut after step 4 and continued is the same run to the bit, dropout and learning rate too.
    shutil.rmtree(tmp_path / "run" / "steps" / "6")
    status, out, err = call("train", *arguments)
    assert (status, err) == (0, "")
    assert "continuing from step 4" in out
    assert rows_of(tmp_path / "run") == whole

    many = name != "babygpt"
    splits = {"train": 1349, "val": 149} if name in ("babygpt", "gpt2") else {"val": 149}
    status, out, err = call("evaluate", RUN, "format=json", *(["split=val"] if len(splits) == 1 else []))
    assert (status, err) == (0, "")
    result = json.loads(out)
    assert (result["model"], result["block_size"], result["stride"]) == (name, 8 if many else 1, 4 if many else 1)
    assert {split: losses["tokens"] for split, losses in result["splits"].items()} == splits
    assert all(losses["standard_error"] is None for losses in result["splits"].values())  # too short to tell

    more = ("max_new_tokens=30", "num_samples=2", "top_p=0.9", "min_p=0.01")
    status, out, err = call("sample", RUN, "prompt=明月", *more)
    assert (status, err) == (0, "")
    samples = out.removesuffix("\n").split("\n\n---\n\n")
    assert [sample[:2] for sample in samples] == ["明月", "明月"]
    assert all(len(sample) == 32 and set(sample) <= set(TEXT) for sample in samples)


@pytest.mark.slow
def test_a_stop_ends_a_text_and_stride_and_split_choose_what_is_evaluated(call, trained):
    run = f"run_dir={trained('babygpt-v4-multihead')}"
    sample = (run, "max_new_tokens=200", "num_samples=3", "temperature=3")
    for stopped in call("sample", *sample, "stop=。?")[1].removesuffix("\n").split("\n\n---\n\n"):
        assert len(stopped) < 200
        assert stopped[-1] in "。?"
        assert not set(stopped[:-1]) & set("。?")
    assert call("sample", run, "stop=x")[2].startswith("error: character 'x' (U+0078)")

    status, out, _ = call("evaluate", run, "stride=2", "split=val")
    assert status == 0
    assert "context of 7 to 8 tokens past the first block" in out
    assert "\nval " in out
    assert "\ntrain" not in out
    status, _, err = call("evaluate", run, "stride=9")
    assert (status, err) == (2, "error: stride=9 must lie in [1, 8], up to model.block_size\n")


@pytest.mark.slow
def test_only_ascii_ends_a_text_of_bytes(call, trained):
    run = f"run_dir={trained('babygpt-v2-position', 'data.tokenizer=byte')}"
    status, _, err = call("sample", run, "stop=。")
    assert (status, err.count("\n")) == (2, 1)
    assert "is neither one token nor characters of one token each" in err
    assert call("sample", run, "stop=.", "max_new_tokens=5")[0] == 0


@pytest.mark.slow
def test_a_run_of_a_gpu_is_read_on_a_cpu(tmp_path, trained):
    """Its attention implementation may not exist here."""
    run = Path(shutil.copytree(trained("babygpt-v4-multihead"), tmp_path / "run"))
    manifest = read_manifest(run)
    manifest.config["model"]["attention"] = "cudnn"
    manifest.write(run)
    assert babyjax.load_run(run).model.config.attention == "xla"


@pytest.mark.slow
def test_a_run_grows_from_another(call, tmp_path, text, trained):
    shutil.copytree(trained("babygpt-v7-residual"), tmp_path / "small")
    grow = (*options("babygpt-v8-projection"), "train.grow_from=small")
    status, out, err = call("train", *grow)
    assert (status, err) == (0, "")
    assert "grown from babygpt-v7-residual in small, step 6" in out
    whole = rows_of(tmp_path / "run")
    assert whole[0]["train_loss"] < rows_of(tmp_path / "small")[0]["train_loss"]
    # The smaller run is needed once, and its path can be written in another way.
    shutil.rmtree(tmp_path / "small")
    shutil.rmtree(tmp_path / "run" / "steps" / "6")
    assert call("train", *grow, "train.grow_from=./small")[0] == 0
    assert rows_of(tmp_path / "run") == whole
    status, _, err = call("train", *grow, "train.grow_from=other")
    assert status == 1
    assert "holds another run: train.grow_from is ./small there, other here" in err


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (("model=babygpt-v9-layernorm", "train.grow_from=SMALL"), 2, "norm"),
        (("model=babygpt-v8-projection", "train.grow_from=nowhere"), 1, "there is no run in"),
        (("model=babygpt", "trainer=counts", "train.grow_from=SMALL"), 2, "train.grow_from= is for trainer=sgd"),
        (("model=bigram", "train.grow_from=SMALL"), 2, "train.grow_from= is for trainer=sgd"),
        (("model=babygpt-v7-residual", "trainer=counts"), 2, "trainer=counts is for v1 in float32"),
        (("model=babygpt-v8-projection", "data.path=other.txt", "train.grow_from=SMALL"), 1, "another vocabulary"),
        (("model.dtype=bfloat16", "trainer=counts"), 2, "trainer=counts is for v1 in float32"),
        (
            ("model=babygpt-v3-attention", "model.attention=cudnn"),
            2,
            "model.attention=cudnn needs model.dtype=bfloat16",
        ),
        (("model=gpt2", "model.vocab_size=5"), 2, "model.vocab_size=5 has no room for the 23 tokens"),
        (("model=babygpt-v4-multihead", "model.n_head=5"), 2, "model.n_head=5 does not divide model.n_embd=32"),
        (("model=gpt-tiny", "train.accumulation=5"), 2, "train.accumulation=5 does not divide train.batch_size=12"),
    ],
)
def test_what_cannot_be_trained_gets_one_sentence(call, tmp_path, text, trained, arguments, status, complaint):
    (tmp_path / "other.txt").write_text("abcdefg " * 100, encoding="utf-8")
    if "train.grow_from=SMALL" in arguments:
        arguments = [argument.replace("SMALL", str(trained("babygpt-v7-residual"))) for argument in arguments]
    code, _, err = call("train", "data.path=词.txt", "run_dir=new", *arguments)
    assert (code, err.count("\n")) == (status, 1)
    assert complaint in err
    assert not (tmp_path / "new" / "run.json").exists()

"""Every rung through the doors: train, continue to the bit, evaluate, sample."""

import json
import shutil

import pytest
from ladder import RUNGS, preset

TEXT = "明月几时有?把酒问青天。不知天上宫阙,今夕是何年。" * 60
RUN = "run_dir=run"


@pytest.fixture
def text(tmp_path):
    (tmp_path / "词.txt").write_text(TEXT, encoding="utf-8")


def options(name: str) -> list[str]:
    full = preset(name)
    steps = ["train.steps=6", "train.eval_interval=2", "checkpoint.interval=2", "checkpoint.keep=9"]
    size = ["model.block_size=8", "train.batch_size=4"]
    if full.n_layer:
        size += ["model.n_layer=2", f"model.n_embd={4 * full.n_head}"]
    if full.vocab_size:
        size += ["model.vocab_size=40"]
    return [f"model={name}", "data.path=词.txt", RUN, "train.eval_tokens=100", *size, *steps]


def rows(tmp_path):
    return [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", RUNGS)
def test_a_rung_trains_goes_on_evaluates_and_samples(knock, tmp_path, text, name):
    arguments = options(name)
    status, out, err = knock("train", *arguments)
    assert (status, err) == (0, "")
    assert f"{name} on 词: 1,500 characters, vocabulary 23" in out
    assert "tokens/s" in out
    assert "flop/s in the products of the model" in out
    whole = rows(tmp_path)
    assert [row["step"] for row in whole if "val_loss" in row] == [2, 4, 6]
    # The run cut after step 4 and continued is the same run to the bit, dropout and step size too.
    shutil.rmtree(tmp_path / "run" / "steps" / "6")
    status, out, err = knock("train", *arguments)
    assert (status, err) == (0, "")
    assert "continuing from step 4" in out
    assert rows(tmp_path) == whole

    status, out, err = knock("evaluate", RUN, "format=json")
    assert (status, err) == (0, "")
    result = json.loads(out)
    many = name != "babygpt"
    assert (result["model"], result["block_size"], result["stride"]) == (name, 8 if many else 1, 4 if many else 1)
    assert (result["splits"]["train"]["tokens"], result["splits"]["val"]["tokens"]) == (1349, 149)
    assert all(split["standard_error"] > 0 for split in result["splits"].values())

    status, out, err = knock(
        "sample", RUN, "prompt=明月", "max_new_tokens=30", "num_samples=2", "top_p=0.9", "min_p=0.01"
    )
    assert (status, err) == (0, "")
    samples = out.removesuffix("\n").split("\n\n---\n\n")
    assert [sample[:2] for sample in samples] == ["明月", "明月"]
    assert all(len(sample) == 32 and set(sample) <= set(TEXT) for sample in samples)


def test_a_stop_ends_a_text_and_stride_and_split_choose_what_is_evaluated(knock, tmp_path, text):
    assert knock("train", *options("babygpt-v6-blocks"))[0] == 0
    sample = (RUN, "max_new_tokens=200", "num_samples=3", "temperature=3")
    for stopped in knock("sample", *sample, "stop=。?")[1].removesuffix("\n").split("\n\n---\n\n"):
        assert len(stopped) < 200
        assert stopped[-1] in "。?"
        assert not set(stopped[:-1]) & set("。?")
    assert knock("sample", RUN, "stop=x")[2].startswith("error: character 'x' (U+0078)")

    status, out, _ = knock("evaluate", RUN, "stride=2", "split=val")
    assert status == 0
    assert "every token from 7 to 8 before it" in out
    assert "\nval " in out
    assert "\ntrain" not in out
    status, _, err = knock("evaluate", RUN, "stride=9")
    assert (status, err) == (2, "error: stride=9 must lie in [1, 8], the tokens of a block\n")


def test_only_ascii_ends_a_text_of_bytes(knock, text):
    assert knock("train", *options("babygpt-v4-multihead"), "data.tokenizer=byte")[0] == 0
    status, _, err = knock("sample", RUN, "stop=。")
    assert (status, err.count("\n")) == (2, 1)
    assert "only ASCII can stop" in err
    assert knock("sample", RUN, "stop=.", "max_new_tokens=5")[0] == 0


def test_a_stride_is_refused_where_one_token_is_read(knock, text):
    assert knock("train", *options("babygpt"))[0] == 0
    status, _, err = knock("evaluate", RUN, "stride=2")
    assert (status, err) == (2, "error: stride= is for a model of many tokens; babygpt reads one\n")


def test_a_run_grows_from_another(knock, tmp_path, text):
    v7, v8 = options("babygpt-v7-residual"), options("babygpt-v8-projection")
    assert knock("train", *v7, "run_dir=small")[0] == 0
    grow = (*v8, "train.grow_from=small")
    status, out, err = knock("train", *grow)
    assert (status, err) == (0, "")
    assert "grown from babygpt-v7-residual in small, step 6" in out
    whole = rows(tmp_path)
    small = [json.loads(line) for line in (tmp_path / "small" / "metrics.jsonl").read_text().splitlines()]
    assert whole[0]["train_loss"] < small[0]["train_loss"]
    # What it grew from is needed once.
    shutil.rmtree(tmp_path / "small")
    shutil.rmtree(tmp_path / "run" / "steps" / "6")
    assert knock("train", *grow)[0] == 0
    assert rows(tmp_path) == whole


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (("model=babygpt-v9-layernorm", "train.grow_from=small"), 2, "layer norm takes mean and length"),
        (("model=babygpt-v8-projection", "train.grow_from=nowhere"), 1, "there is no run in"),
        (("model=babygpt", "trainer=counts", "train.grow_from=small"), 2, "counting has no start"),
        (("model=bigram", "train.grow_from=small"), 2, "counting has no start"),
        (("model=babygpt-v7-residual", "trainer=counts"), 2, "trainer=counts trains v1 in float32"),
        (("model=babygpt-v8-projection", "data.path=other.txt", "train.grow_from=small"), 1, "another vocabulary"),
        (("model.dtype=bfloat16", "trainer=counts"), 2, "trainer=counts trains v1 in float32"),
        (("model=gpt2", "model.vocab_size=5"), 2, "model.vocab_size=5 has no room for the 23 tokens"),
        (("model=babygpt-v4-multihead", "model.n_head=5"), 2, "5 heads cannot share a width of 32"),
        (
            ("model=gpt-tiny", "train.accumulation=5"),
            2,
            "a batch of 12 has not 5 equal parts; change train.accumulation",
        ),
    ],
)
def test_what_cannot_be_trained_gets_one_sentence(knock, tmp_path, text, arguments, status, complaint):
    (tmp_path / "other.txt").write_text("abcdefg " * 100, encoding="utf-8")
    if "train.grow_from=small" in arguments:
        assert knock("train", *options("babygpt-v7-residual"), "run_dir=small")[0] == 0
    code, _, err = knock("train", "data.path=词.txt", "run_dir=new", *arguments)
    assert (code, err.count("\n")) == (status, 1)
    assert complaint in err
    assert not (tmp_path / "new" / "config.yaml").exists()

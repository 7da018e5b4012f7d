"""Texts prepared on disk, by the commands: trained on, evaluated, moved, compared, mixed, swept and exported."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest

from babyjax.data import preparing
from babyjax.runs.manifest import read_manifest
from babyjax.training import gradient

pytest.importorskip("tokenizers")
TINY = ("model.n_embd=4", "train.batch_size=4", "train.steps=20", "train.eval_interval=10", "train.eval_tokens=")
STORIES = "data.path=stories"
ONE_BLOCK = ("model=gpt-tiny-2019", "model.n_layer=1", "model.n_head=1", "model.block_size=8", "model.head_bias=false")
BPE = ("data.tokenizer=bpe", "data.vocab_size=300")


@pytest.fixture
def stories(tmp_path, monkeypatch, rng):
    """A folder of stories that counts as large, and whose tokens are read from the disk."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(preparing, "PREPARED_FROM", 1)
    monkeypatch.setattr(gradient, "ON_DEVICE", 0)
    (tmp_path / "stories").mkdir()
    words = ["the ", "cat ", "sat ", "and ", "ran.\n", "詩 "]
    for index in range(20):
        (tmp_path / f"stories/{index:02}.txt").write_text("".join(rng.choice(words, 100)), encoding="utf-8")
    return tmp_path / "stories"


@pytest.fixture
def done(call):
    """Run a command that must succeed: what it prints."""

    def run(name: str, *arguments: str) -> str:
        status, out, err = call(name, *arguments)
        assert status == 0, err
        return out

    return run


@pytest.fixture
def evaluated(done):
    def run(name: str, *arguments: str) -> dict:
        return json.loads(done("evaluate", f"run_dir={name}", "format=json", *arguments))

    return run


def test_a_run_on_a_prepared_text_is_that_on_the_text(done, evaluated, stories, monkeypatch):
    out = done("train", STORIES, *TINY, "run_dir=large")
    assert "babygpt on stories: " in out
    assert re.search(r"\n[\d,]+ training tokens of .*cache/babyjax/corpora/\w+/stories\n", out)
    entry = read_manifest(Path("large")).corpus
    assert entry.path == str(stories)
    assert not Path("large/corpus.txt").exists()
    assert evaluated("large", "verify=true")["verification"]["passed"]
    monkeypatch.setattr(preparing, "PREPARED_FROM", 1 << 20)
    monkeypatch.setattr(preparing, "user_cache", lambda: None)
    done("train", STORIES, *TINY, "run_dir=small")
    assert read_manifest(Path("small")).corpus == entry.model_copy(update={"path": None})
    theirs = evaluated("small")
    assert Path("small/corpus.txt").exists()
    ours = evaluated("large")
    for split in ("train", "val"):
        known = {key: value for key, value in theirs["splits"][split].items() if value is not None}
        assert {key: ours["splits"][split][key] for key in known} == pytest.approx(known, rel=1e-5)
    assert "continuing from step 20" in done("train", STORIES, *TINY, "run_dir=large", "train.steps=30")


def test_a_text_that_has_moved_is_found_where_it_is_said_to_be(done, call, evaluated, stories):
    done("train", STORIES, "model=bigram", "run_dir=run")
    before = evaluated("run", "verify=true")
    shutil.rmtree("cache")
    stories.rename("elsewhere")
    status, _, err = call("evaluate", "run_dir=run")
    assert (status, err.count("\n")) == (1, 1)
    assert "the corpus of" in err
    assert "if it has moved, say where it is with data.path=" in err
    assert evaluated("run", "data.path=elsewhere", "verify=true") == before
    Path("elsewhere/00.txt").write_text("the cat ran")
    status, _, err = call("evaluate", "run_dir=run", "data.path=elsewhere")
    assert (status, "is not the corpus that" in err, "text= evaluates on another text" in err) == (1, True, True)
    assert evaluated("run", "text=elsewhere")["corpus"] == "elsewhere"
    assert call("evaluate", "run_dir=run", "text=elsewhere", "data.path=elsewhere")[0] == 2


@pytest.mark.slow
def test_a_run_is_exported_though_its_text_has_moved(done, evaluated, stories):
    done("train", STORIES, *TINY, *BPE, *ONE_BLOCK, "run_dir=run")
    before = evaluated("run", "verify=true")
    shutil.rmtree("cache")
    stories.rename("elsewhere")
    assert evaluated("run", "data.path=elsewhere", "verify=true") == before
    done("export", "run_dir=run", "out=exported")
    card = Path("exported/README.md").read_text()
    assert ("stories: " in card, "Counting alone" in card) == (True, False)


@pytest.mark.slow
def test_a_run_goes_on_after_its_text_has_moved(done, evaluated, stories):
    done("train", STORIES, *TINY, "run_dir=run")
    stories.rename("elsewhere")
    done("train", "data.path=elsewhere", *TINY, "run_dir=run", "train.steps=30")
    assert evaluated("run")["corpus"] == "elsewhere"


@pytest.mark.slow
def test_a_run_in_memory_goes_on_when_its_text_is_prepared_and_the_other_way_round(
    done, evaluated, stories, monkeypatch
):
    monkeypatch.setattr(preparing, "PREPARED_FROM", 1 << 20)
    done("train", STORIES, *TINY, "run_dir=memory")
    done("prepare", STORIES)
    done("train", STORIES, *TINY, "run_dir=memory", "train.steps=30")
    done("train", STORIES, *TINY, "run_dir=disk")
    shutil.rmtree("cache")
    done("train", STORIES, *TINY, "run_dir=disk", "train.steps=30")
    assert evaluated("memory") == evaluated("disk")
    assert [Path(name, "corpus.txt").exists() for name in ("memory", "disk")] == [True, False]
    done("prepare", STORIES)
    done("train", STORIES, *TINY, "run_dir=memory", "overwrite=true")
    assert not Path("memory/corpus.txt").exists()


@pytest.mark.slow
def test_damaged_tokens_are_not_scored(done, call, stories):
    done("prepare", STORIES, "out=here", "data.tokenizer=byte")
    done("train", "data.path=here", "data.tokenizer=byte", *TINY, "run_dir=run")
    tokens = Path("here/tokens.bin")
    tokens.write_bytes(tokens.read_bytes()[:-1] + b"b")
    status, _, err = call("evaluate", "run_dir=run")
    assert (status, "tokens.bin was damaged or changed" in err) == (1, True)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(("model=bigram",), id="bigram", marks=pytest.mark.slow),
        pytest.param(("model=ngram",), id="ngram"),
        pytest.param(("trainer=counts", "model.n_embd=3", "trainer.starts=1"), id="counts", marks=pytest.mark.slow),
    ],
)
def test_counting_models_learn_a_byte_pair_encoding(done, evaluated, stories, model):
    done("train", STORIES, *BPE, *model, "run_dir=run")
    found = evaluated("run")
    assert found["vocab_size"] <= 300
    assert found["splits"]["val"]["nats_per_token"] < 0.5 * math.log(found["vocab_size"])


@pytest.mark.slow
def test_prepared_texts_are_compared_mixed_and_swept(done, evaluated, stories):
    done("train", STORIES, *TINY, "run_dir=network", "model=babygpt-v2-position")
    done("train", STORIES, "model=ngram", "run_dir=ngram")
    compared = json.loads(done("compare", "network", "ngram", "format=json"))
    assert (compared["corpus"], compared["runs"][0]["model"]) == ("stories", "babygpt-v2-position")
    assert compared["comparisons"][0]["differing_options"]["model"] == ["babygpt-v2-position", "ngram"]
    done("train", STORIES, "model=mixture", "model.parts=network,ngram", "run_dir=mixture")
    out = done("sweep", STORIES, *TINY, "optimizer.learning_rate=1e-3,1e-2", "train.seeds=1", "run_dir=sweep")
    assert "trained again, on the whole training split" in out
    assert evaluated("mixture")["model"] == "mixture"
    trial = "sweep/trials/optimizer.learning_rate=1e-3"
    held_out = json.loads(Path("sweep/sweep.json").read_text())["trials"][0]["held_out"]
    assert evaluated(trial)["splits"]["val"]["nats_per_token"] == pytest.approx(held_out, rel=1e-5)


def test_prepare_says_what_it_has_written_and_what_comes_next(done, call, stories):
    out = done("prepare", STORIES, *BPE)
    assert "in 20 documents" in out
    assert "tokens    " in out
    assert "train model=gpt-tiny data.path=stories data.tokenizer=bpe data.vocab_size=300" in out
    assert "train model=gpt-tiny data.path=out" in done("prepare", STORIES, "out=out")
    for arguments, status, sentence in (
        (("out=out", STORIES), 1, "out is not an empty folder"),
        ((), 2, "data.path=PATH is missing"),
        (("data.path=nothing",), 1, "cannot read nothing"),
        (("data.path=out",), 1, "out is a prepared corpus already"),
        ((STORIES, "data.vocab_size=300"), 2, "is for data.tokenizer=bpe"),
        ((STORIES, "oot=x"), 2, "unknown option 'oot'"),
    ):
        code, _, err = call("prepare", *arguments)
        assert (code, err.count("\n")) == (status, 1), err
        assert sentence in err

"""Import and export as their users type them."""

import errno
import io
import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ladder import filled, small

import babyjax
from babyjax.export import export
from babyjax.progress import silent
from babyjax.train import main as train

pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")
pytestmark = pytest.mark.slow
TEXT = "the cat sat on the mat and the cat sat on the hat\n" * 60


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "my.txt").write_text(TEXT)
    small_one = ["model.n_embd=16", "model.n_layer=1", "model.block_size=8", "train.steps=3", "train.batch_size=2"]
    with redirect_stdout(io.StringIO()):
        assert (
            train(["model=qwen-tiny", f"data.path={folder / 'my.txt'}", f"run_dir={folder / 'run'}", *small_one]) == 0
        )
    return folder


@pytest.fixture
def run(call, tmp_path, trained):
    """A trained run with its text, in an empty folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run"


def test_an_export_tells_how_much_of_the_corpus_is_read(run, monkeypatch):
    read, told = babyjax.LoadedRun.corpus, []

    def corpus(self, path=None, progress=silent):
        progress("reading", 0.5)
        return read(self, path, progress)

    monkeypatch.setattr(babyjax.LoadedRun, "corpus", corpus)
    export(str(run), progress=lambda what, share: told.append((what, share)))
    assert told == [("reading", 0.5)]


def test_a_run_is_exported_imported_sampled_evaluated_and_trained_on(call, run):
    assert call("export", "run_dir=run")[1] == f"written to {Path('run', 'hf')}\n"
    status, out, err = call("export", "run_dir=run", "out=out")
    assert (status, out, err) == (0, "written to out\n", "")
    card = (run.parent / "out" / "README.md").read_text()
    sha256 = babyjax.Corpus("my", TEXT).sha256
    result = json.loads((run / "result.json").read_text())["losses"]["val"]
    assert f"{result['nats_per_token']:.4f} | {result['bits_per_byte']:.4f}" in card
    for part in (f"my: {len(TEXT):,} characters, sha256 `{sha256}`", "model.n_embd: 16", "add-one bigram", "-gram"):
        assert part in card
    assert "my.txt" not in card

    status, out, err = call("import", "path=out", "run_dir=again")
    assert (status, err) == (0, "")
    assert out.splitlines()[1] == "saved to  again"
    assert out.endswith("babyjax sample run_dir=again\n")
    greedy = ("prompt=the ", "max_new_tokens=4", "temperature=0")
    assert call("sample", "run_dir=again", *greedy) == call("sample", "run_dir=run", *greedy)

    status, out, err = call("evaluate", "run_dir=again")
    assert (status, out) == (1, "")
    assert "has no corpus, since its model was not trained here; text=FILE evaluates on yours" in err
    losses = [
        json.loads(call("evaluate", *arguments, "format=json")[1])["splits"]["val"]
        for arguments in (["run_dir=run"], ["run_dir=again", "text=my.txt"])
    ]
    assert losses[0] == losses[1]

    config = ("config=again/config.yaml", "train.grow_from=again", "data.path=my.txt", "run_dir=tuned")
    status, out, err = call("train", *config, "train.steps=2", "train.batch_size=2", "optimizer=adamw-3e-4")
    assert (status, err) == (0, "")
    assert "grown from qwen-tiny in again, step 0" in out
    ours, grown = (babyjax.named_arrays(babyjax.load_run(run.parent / name).model) for name in ("run", "tuned"))
    distance = max(float(abs(grown[name] - ours[name]).max()) for name in ours)
    assert 0 < distance < 0.01  # two small steps away


def test_a_run_that_was_imported_may_move(call, run):
    assert call("export", "run_dir=run", "out=hf2")[0] == 0
    assert call("import", "path=hf2", "run_dir=first")[0] == 0
    Path("first").rename("second")
    config = babyjax.load_config(["config=second/config.yaml"])
    assert config.data.tokenizer == str(run.parent / "second" / "tokenizer.json")
    assert config.model == babyjax.load_run("second").config.model


def test_an_export_that_fails_leaves_nothing(call, run, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("babyjax.export.model_card", refuse)
    status, _, err = call("export", "run_dir=run", "out=full")
    assert (status, err) == (1, f"error: cannot write {run.parent / 'full'}: No space left on device\n")
    assert not list(run.parent.glob("full*"))
    assert not list(run.parent.glob(".babyjax-*"))


def test_an_import_that_was_interrupted_is_done_again(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    model, tokenizer = filled(small("babygpt"), 3), babyjax.CharTokenizer("abc")
    with monkeypatch.context() as patch:
        patch.setattr(babyjax.Run, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            babyjax.save_run(model, tokenizer, tmp_path / "run")
    with pytest.raises(babyjax.errors.RunError, match="has no checkpoint yet; finish training or importing it first"):
        babyjax.load_run(tmp_path / "run")
    assert babyjax.load_run(babyjax.save_run(model, tokenizer, tmp_path / "run")).step == 0


def test_a_trained_run_is_not_replaced_even_if_its_checkpoints_are_gone(run):
    shutil.rmtree(run / "steps")
    with pytest.raises(babyjax.errors.RunError, match="already holds a run"):
        babyjax.save_run(filled(small("babygpt"), 3), babyjax.CharTokenizer("abc"), run)


def test_options_that_change_nothing_are_not_in_the_config_of_a_saved_run(tmp_path):
    changes = {"norm_eps": 1e-6, "rotary_base": 500.0, "activation": "silu"}
    config = small("babygpt-v3-attention", **changes)
    folder = babyjax.save_run(filled(config, 3), babyjax.CharTokenizer("abc"), tmp_path / "run")
    read = babyjax.load_config([f"config={folder}/config.yaml"]).model
    assert read == config.replace(**{name: getattr(read, name) for name in changes})


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (("import",), 2, "path=DIR is missing: name the Hugging Face directory"),
        (("import", "path=nowhere"), 2, "run_dir=DIR is missing"),
        (("import", "path=nowhere", "run_dir=x"), 1, "path=nowhere is not a folder; nothing is downloaded"),
        (("import", "path=.", "run_dir=x"), 1, "cannot read"),
        (("import", "pth=."), 2, "unknown option 'pth'; did you mean path?"),
        (("export", "run_dir=run", "out=run"), 1, "is not an empty folder; choose another"),
        (("export", "run_dir=run", "format=arpa"), 2, "format=arpa is for model=ngram; run holds qwen-tiny"),
        (("export", "run_dir=run", "format=gguf"), 2, "unknown value of format: 'gguf'; choose from hf, arpa"),
    ],
)
def test_what_cannot_be_done_gets_one_sentence(call, request, arguments, status, complaint):
    if "run_dir=run" in arguments:
        request.getfixturevalue("run")
    got, out, err = call(*arguments)
    assert (got, out) == (status, "")
    assert complaint in err
    assert err.count("\n") == 1


def test_a_rung_that_no_class_has_is_refused_and_nothing_is_written(call, tmp_path):
    babyjax.save_run(filled(small("babygpt-v3-attention"), 3), babyjax.CharTokenizer("abc"), tmp_path / "v3")
    status, _, err = call("export", "run_dir=v3", "out=out")
    assert status == 2
    assert "none of GPT2LMHeadModel, " in err
    assert "has blocks without residual connections" in err
    assert not (tmp_path / "out").exists()


def test_a_model_in_memory_is_saved_as_a_run(tmp_path):
    tokenizer = babyjax.CharTokenizer("\nabc")
    tokens = tokenizer.encode("abc\nabca\n" * 9)
    models = [
        filled(small("llama-tiny", vocab_size=9), 9),
        babyjax.Bigram.from_tokens(tokens, 4),
        babyjax.estimate_ngram(tokens, 4, 3),
    ]
    for index, model in enumerate(models):
        folder = babyjax.save_run(model, tokenizer, tmp_path / f"run-{index}")
        run = babyjax.load_run(folder)
        assert (run.step, run.tokenizer) == (0, tokenizer)
        ours, saved = babyjax.named_arrays(model), babyjax.named_arrays(run.model)
        assert list(ours) == list(saved)
        for name in ours:
            np.testing.assert_array_equal(ours[name], saved[name])
        assert babyjax.load_config([f"config={folder}/config.yaml"]).model == run.config.model
    with pytest.raises(babyjax.errors.RunError, match="already holds a run"):
        babyjax.save_run(models[1], tokenizer, tmp_path / "run-0")
    assert babyjax.save_run(models[1], tokenizer, tmp_path / "run-0", overwrite=True)
    with pytest.raises(babyjax.errors.ConfigError, match="a model of 4 tokens has no room for the 5 of the tokenizer"):
        babyjax.save_run(models[1], babyjax.CharTokenizer("\nabcd"), tmp_path / "other")
    with pytest.raises(babyjax.errors.ConfigError, match="a Mixture cannot be saved as a run"):
        babyjax.save_run(babyjax.Mixture(models[1:], jnp.zeros((0, 2))), tokenizer, tmp_path / "other")
    assert not (tmp_path / "other").exists()

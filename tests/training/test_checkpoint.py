import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from babyjax import BabyGPT, CharTokenizer, Corpus, load_run
from babyjax.config import load_config
from babyjax.errors import ConfigError, RunError
from babyjax.training.checkpoint import RunDirectory, named_arrays
from babyjax.training.optimizer import make_optimizer
from babyjax.training.step import init_state

CORPUS = Corpus("mine", "abcd" * 30)
TOKENIZER = CharTokenizer.fit(CORPUS.text)
OPTIMIZER = make_optimizer(load_config([]).optimizer)


def state_of(seed, n_embd=32):
    return init_state(BabyGPT(4, n_embd, key=jax.random.key(seed)), OPTIMIZER)


def config_of(path, *arguments):
    return load_config([f"run_dir={path}", "data.path=mine.txt", *arguments])


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / "run")
    assert not run.exists()
    run.create(config_of(run.path), TOKENIZER, CORPUS)
    return run


def test_names_are_paths_without_the_variables_own():
    assert set(named_arrays(state_of(0))) == {"step", "opt_state/0/count"} | {
        f"{tree}/{leaf}"
        for tree in ("model", "opt_state/0/mu", "opt_state/0/nu")
        for leaf in ("token_embedding/embedding", "lm_head/kernel", "lm_head/bias")
    }


def test_what_is_saved_is_restored_to_the_bit(run):
    state = state_of(0)
    run.save(state, 7, keep=2)
    run.wait()
    assert run.saved_steps() == [7]
    chex.assert_trees_all_equal(run.restore(jax.eval_shape(lambda: state_of(1)), 7), state)
    loaded = load_run(run.path)
    assert loaded.step == 7
    chex.assert_trees_all_equal(loaded.model, state.model)
    assert (loaded.tokenizer, loaded.config) == (TOKENIZER, config_of(run.path))
    assert run.corpus() == CORPUS


def test_the_newest_are_kept(run):
    for step in (10, 9, 100, 20):
        run.save(state_of(step), step, keep=2)
    run.wait()
    assert run.saved_steps() == [20, 100]
    chex.assert_trees_all_equal(run.restore(state_of(0), 20), state_of(20))


def test_a_checkpoint_is_of_the_moment_of_saving_though_its_buffers_are_given_away(run):
    state = state_of(0)
    expected = jax.tree.map(np.array, state)
    run.save(state, 1, keep=1)
    jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)(state)
    run.wait()
    chex.assert_trees_all_equal(run.restore(expected, 1), expected)


def test_another_shape_is_refused_by_name(run):
    run.save(state_of(0), 1, keep=1)
    run.wait()
    with pytest.raises(RunError, match=r"model/lm_head/kernel should be float32\[3, 4\], it has float32\[32, 4\]"):
        run.restore(state_of(0, n_embd=3), 1)
    with pytest.raises(RunError, match=r"other should be .* it has nothing"):
        run.restore({"other": jnp.zeros(3)}, 1)


def test_a_damaged_checkpoint_is_named(run):
    run.save(state_of(0), 1, keep=1)
    run.wait()
    for file in (run.path / "steps" / "1").rglob("manifest.ocdbt"):
        file.write_bytes(b"damaged")
    with pytest.raises(RunError, match="steps/1 is not a checkpoint that can be read"):
        load_run(run.path)


def test_a_folder_without_a_run_is_told_from_one_with_other_files(tmp_path):
    with pytest.raises(RunError, match=r"there is no run in .*nowhere"):
        load_run(tmp_path / "nowhere")
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match=r"holds no run but other files \(thesis\.tex\)"):
        RunDirectory(tmp_path).exists()
    with pytest.raises(RunError, match="is a file; it must be a folder"):
        RunDirectory(tmp_path / "thesis.tex").exists()


def test_a_run_without_a_checkpoint_or_with_a_damaged_config_says_so(run):
    with pytest.raises(RunError, match="has no checkpoint yet"):
        load_run(run.path)
    (run.path / "config.yaml").write_text("model: 3")
    with pytest.raises(ConfigError, match=r"config\.yaml is not the configuration"):
        load_run(run.path)


def test_only_the_same_run_may_be_continued(run):
    run.check_same_run(config_of(run.path, "train.steps=9", "data.path=elsewhere/mine.txt"), CORPUS)
    with pytest.raises(RunError, match=r"holds another run: model\.n_embd is 32 there, 5 here"):
        run.check_same_run(config_of(run.path, "model.n_embd=5"), CORPUS)
    with pytest.raises(RunError, match="the corpus has sha256 "):
        run.check_same_run(config_of(run.path), Corpus("mine", "other" * 30))


def test_starting_anew_removes_the_run_and_nothing_else(run):
    run.save(state_of(0), 1, keep=1)
    run.wait()
    run.keep_rows([{"step": 1}])
    (run.path / "notes.md").write_text("mine")
    run.create(config_of(run.path), TOKENIZER, CORPUS)
    assert run.saved_steps() == []
    assert sorted(item.name for item in run.path.iterdir()) == [
        "config.yaml",
        "corpus.txt",
        "notes.md",
        "steps",
        "tokenizer.json",
    ]


def test_rows_after_the_checkpoint_are_dropped_and_infinity_is_null(run):
    run.keep_rows([{"step": 1, "train_loss": 2.5}, {"step": 2, "train_loss": float("inf")}, {"step": 3}])
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "tr')  # the process was killed here
    run.keep_rows([{"step": 3, "train_loss": 1.0}], after=2)
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1, "train_loss": 2.5}, {"step": 2, "train_loss": None}, {"step": 3, "train_loss": 1.0}]

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import chex
import numpy as np
import pytest
from small_runs import CORPUS, TOKENIZER, config_of, event_of, saved, state_of, train

from babyjax import load_run, read_corpus
from babyjax.errors import CheckpointError, DataError, RunError
from babyjax.files import MANIFEST, replace_file
from babyjax.runs import directory
from babyjax.runs.directory import best_step, holds_run, run_folder
from babyjax.runs.manifest import read_manifest


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with five checkpoints, three of them evaluated."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(
        folder, *(event_of(step, 10, val) for step, val in ((10, 2.0), (20, 1.0), (30, 3.0), (40, None), (100, None)))
    )
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_a_run_needs_only_its_directory(run):
    loaded = load_run(run)
    assert loaded.step == 100
    chex.assert_trees_all_equal(loaded.model, state_of(100).model)
    assert (loaded.tokenizer, loaded.config) == (TOKENIZER, config_of(run))
    assert loaded.corpus() == CORPUS
    moved = run.rename(run.with_name("诗 2"))
    assert load_run(moved).config == config_of(moved)


def test_steps_are_chosen_by_number_newest_or_best(run):
    assert {which: load_run(run, which).step for which in ("newest", "best", "30", 40)} == {
        "newest": 100,
        "best": 20,
        "30": 30,
        40: 40,
    }
    for which in ("11", "worst", "-1", "1.5", "", "9" * 5000):
        with pytest.raises(
            RunError, match=rf"no checkpoint of step '{which[:20]}'; choose from newest, best, 10, 20, 30"
        ) as e:
            load_run(run, which)
        assert len(str(e.value)) < 200


def test_best_is_the_newest_if_nothing_was_evaluated(tmp_path):
    train(tmp_path / "run", event_of(3), event_of(5))
    assert best_step(saved(tmp_path / "run")) is None
    assert load_run(tmp_path / "run", "best").step == 5


def test_a_folder_without_a_run_is_told_from_one_with_other_files(tmp_path):
    with pytest.raises(RunError, match=r"there is no run in .*nowhere"):
        load_run(tmp_path / "nowhere")
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match=r"holds no run but other files \(thesis\.tex\)"):
        holds_run(tmp_path)
    with pytest.raises(RunError, match="is a file; it must be a folder"):
        holds_run(tmp_path / "thesis.tex")


def test_a_run_without_a_checkpoint_or_with_another_config_says_so(tmp_path):
    train(tmp_path / "run")
    with pytest.raises(RunError, match="has no checkpoint yet"):
        load_run(tmp_path / "run")
    train(tmp_path / "run", event_of(1))
    manifest = read_manifest(tmp_path / "run")
    manifest.replace(config={"model": 3}).write(tmp_path / "run")
    with pytest.raises(RunError, match="has a configuration this version cannot read"):
        load_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("corpus.txt", lambda text: text + "a"),
        ("corpus.txt", lambda text: ""),
        ("tokenizer.json", lambda text: text.replace("abcd", "abce")),
        *[("tokenizer.json", lambda text, new=new: new) for new in ("", "{", '{"type": "bpe"}', "\0")],
        ("run.json", lambda text: text.replace('"n_embd": 3', '"n_embd": 4')),
        ("run.json", lambda text: text.replace('"val": 3.0', '"val": 0.1')),
        ("run.json", lambda text: text.replace('"step": 20', '"step": 21')),
    ],
)
def test_a_changed_file_is_named(run, name, change):
    """Among them what chooses the best checkpoint and what is kept."""
    changed = change((run / name).read_text())
    assert changed != (run / name).read_text()
    (run / name).write_text(changed)
    with pytest.raises(RunError, match=f"{name} was changed"):
        load_run(run).corpus()


@pytest.mark.parametrize("name", ["corpus.txt", "tokenizer.json"])
def test_a_missing_file_is_named(run, name):
    (run / name).unlink()
    with pytest.raises(RunError, match=rf"cannot read .*{name}: No such file"):
        load_run(run).corpus()


def test_a_damaged_checkpoint_names_the_one_before_it(run):
    (run / "steps" / "100" / "state" / "manifest.ocdbt").unlink()
    with pytest.raises(CheckpointError, match=r"steps/100 cannot be read .*; remove that folder to use step 40"):
        load_run(run)
    assert load_run(run, 40).step == 40
    shutil.rmtree(run / "steps" / "100")
    assert load_run(run).step == 40


def test_a_checkpoint_under_the_number_of_another_is_told(run):
    shutil.rmtree(run / "steps" / "100")
    (run / "steps" / "40").rename(run / "steps" / "100")
    with pytest.raises(CheckpointError, match="steps/100 was changed after it was written"):
        load_run(run)


def test_a_run_may_be_read_while_it_trains_and_removes_old_steps(run, monkeypatch):
    real = directory.read_arrays

    def read(path, *arguments):
        if path.name == "100" and path.is_dir():  # meanwhile the trainer saves step 110 and removes step 100
            monkeypatch.setattr(directory, "read_arrays", real)
            train(run, event_of(110, 10), arguments=("checkpoint.keep=1",))
            assert not path.exists()
        return real(path, *arguments)

    monkeypatch.setattr(directory, "read_arrays", read)
    assert load_run(run).step == 110


@pytest.mark.parametrize("path", ["~nosuchuser/run", "x" * 300, "a\0b"])
def test_a_path_that_cannot_be_one_is_refused(path):
    with pytest.raises(RunError, match="is not a path this system can use"):
        run_folder(path)
    with pytest.raises(DataError):
        read_corpus(path)


def test_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(RunError):
        holds_run(run_folder(tmp_path / "loop"))


@pytest.mark.parametrize("name", ["a[b]", "a]", "a*", "a?b", "a\\b"])
def test_a_path_that_orbax_takes_for_a_pattern_is_refused_before_training(run, name):
    """A checkpoint written there could not be read back; a run that was moved there stays whole."""
    with pytest.raises(RunError, match="which checkpoints cannot be stored under; rename it"):
        train(run.with_name(name), event_of(1))
    assert not run.with_name(name).exists()
    moved = run.rename(run.with_name(name))
    for action in (lambda: load_run(moved), lambda: train(moved, event_of(110), arguments=("checkpoint.keep=1",))):
        with pytest.raises(RunError, match="which checkpoints cannot be stored under; rename it"):
            action()
    assert sorted(os.listdir(moved / "steps")) == ["10", "100", "20", "30", "40"]
    assert load_run(moved.rename(run)).step == 100


def test_what_a_manifest_says_of_its_run(run):
    manifest = read_manifest(run)
    assert manifest.config["model"]["n_embd"] == 3
    assert manifest.corpus.model_dump() == {"name": "mine", "characters": 120, "sha256": CORPUS.sha256, "path": None}
    assert set(manifest.files) == {"corpus.txt", "tokenizer.json"}
    assert manifest.versions["numpy"] == np.__version__
    assert [(each.step, each.losses) for each in manifest.checkpoints[2:4]] == [
        (30, {"train": 3.0, "val": 3.0}),
        (40, {}),
    ]
    assert "format" in json.loads((run / MANIFEST).read_text())


def test_links_to_the_files_of_a_run_may_be_read(run):
    """A run on several disks."""
    for name in (MANIFEST, "corpus.txt", "tokenizer.json", "steps"):
        target = (run / name).rename(run.parent / name)
        (run / name).symlink_to(target)
    assert load_run(run).corpus() == CORPUS
    replace_file(run.parent / "corpus.txt", "other")
    with pytest.raises(RunError, match=r"corpus\.txt was changed"):
        load_run(run).corpus()


DAMAGED = """
import shutil, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent)]
from test_arrays import DAMAGES
from babyjax import load_run
from babyjax.cli import prepare_jax
from babyjax.errors import CheckpointError

prepare_jax()
for damage in DAMAGES[:-1]:
    run = Path(shutil.copytree(sys.argv[2], f"{sys.argv[2]}-{damage.__name__}"))
    damage(run / "steps" / "100")
    try:
        load_run(run)
    except CheckpointError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_damaged_checkpoint_prints_one_sentence_and_no_tracebacks(run):
    """Neither those of Orbax's event loop, nor those of TensorStore's threads."""
    ran = subprocess.run(
        [sys.executable, "-c", DAMAGED, Path(__file__).parent, run], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    sentences = ran.stdout.splitlines()
    assert len(sentences) == 5
    assert all("; remove that folder to use step 40" in sentence for sentence in sentences)

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import threading

import chex
import pytest
from orbax.checkpoint import v1 as ocp
from small_runs import CORPUS, TOKENIZER, config_of, contents, event_of, saved, state_of, train

from babyjax import Corpus, Run, load_run
from babyjax.errors import BabyjaxError, CheckpointError, DivergenceError, RunError
from babyjax.files import MANIFEST
from babyjax.runs.manifest import read_manifest


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of five steps with checkpoints of steps 3 and 5."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(folder, event_of(3, 3, val=2.0), event_of(5, 2))
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps_in(folder):
    return sorted(os.listdir(folder / "steps"))


def test_a_run_continues_from_its_newest_checkpoint(run):
    before = rows_of(run)
    chex.assert_trees_all_equal(train(run, event_of(6)), state_of(5))
    assert rows_of(run) == [*before, {"step": 6, "train_loss": 1 / 6}]
    assert list(saved(run)) == [3, 5, 6]


def test_the_newest_are_kept_and_the_best_by_validation_loss(tmp_path):
    run = tmp_path / "run"
    for step, val in [(10, 3.0), (20, 1.0), (30, None), (40, 2.0), (50, None)]:  # each as a process that continues
        train(run, event_of(step, 10, val), arguments=("checkpoint.keep=2",))
    assert list(saved(run)) == [20, 40, 50]
    assert steps_in(run) == ["20", "40", "50"]
    train(run, event_of(60, 10, 0.5), arguments=("checkpoint.keep=1",))
    assert steps_in(run) == ["60"]


def test_infinite_losses_are_no_best_and_stay_json(tmp_path):
    train(
        tmp_path / "run", *(event_of(step, val=val) for step, val in ((1, float("nan")), (2, 2.0), (3, float("inf"))))
    )
    assert load_run(tmp_path / "run", "best").step == 2
    assert "Infinity" not in (tmp_path / "run" / MANIFEST).read_text()


def test_rows_are_of_json_and_only_of_what_was_measured(tmp_path):
    """NaN stands for nothing measured, infinity is null; an evaluation of the last step only is in result.json."""
    run = tmp_path / "run"
    nan, inf = float("nan"), float("inf")
    with Run.open(config_of(run), CORPUS, TOKENIZER) as opened:
        opened.begin()
        for event, evaluated in [
            (event_of(0, 0), True),
            (event_of(2, 2, val=2.0)._replace(train_losses=[2.5, inf]), True),
            (event_of(3, details={"restart": 1}, val=3.0)._replace(train_losses=[nan]), True),
            (event_of(4, val=4.0, last=True), False),
        ]:
            opened.record(event, evaluated=evaluated)
    assert rows_of(run) == [
        {"step": 1, "train_loss": 2.5},
        {"step": 2, "train_loss": None, "eval_train_loss": 2.0, "val_loss": 2.0},
        {"step": 3, "restart": 1, "eval_train_loss": 3.0, "val_loss": 3.0},
        {"step": 4, "train_loss": 0.25},
    ]
    result = json.loads((run / "result.json").read_text())
    assert (result["step"], result["losses"]["val"]["nats_per_token"]) == (4, 4.0)
    assert list(saved(run)) == [4]  # the last event is saved without being asked


def test_results_are_of_the_last_step_only(run):
    with Run.open(config_of(run), CORPUS, TOKENIZER) as opened:
        opened.write_decomposition({"entropy": 1.0, "best": float("inf")})
        assert opened.has_decomposition()
    assert json.loads((run / "decomposition.json").read_text()) == {"entropy": 1.0, "best": None}
    with Run.open(config_of(run), CORPUS, TOKENIZER) as opened:
        opened.restore(state_of(0))
        opened.begin()
        assert not opened.has_decomposition()


@pytest.mark.parametrize(
    ("options", "due"), [(["checkpoint.interval=2"], [2, 4]), (["checkpoint.seconds=1e-9"], [1, 2, 3, 4, 5]), ([], [])]
)
def test_checkpoints_are_saved_by_steps_and_by_seconds(tmp_path, options, due):
    with Run.open(config_of(tmp_path / "run", *options), CORPUS, TOKENIZER) as opened:
        opened.begin()
        for step in range(1, 6):
            opened.record(event_of(step), evaluated=False)
        opened.wait()
    assert list(saved(tmp_path / "run")) == due


def test_what_is_not_finite_is_not_saved(run):
    """The loss may still be finite when a parameter is not."""
    event = event_of(6)
    event = event._replace(state=event.state._replace(rest={"mean": float("nan")}))
    with pytest.raises(DivergenceError, match="rest/mean has NaN"):
        train(run, event)
    assert list(saved(run)) == [3, 5]


def test_only_the_same_run_continues(run):
    elsewhere = config_of(run, "train.steps=9", "data.path=elsewhere/mine.txt", "checkpoint.keep=3")
    with Run.open(elsewhere, CORPUS, TOKENIZER) as opened:
        opened.restore(state_of(0))
        opened.begin()
    assert load_run(run).config == elsewhere
    with pytest.raises(RunError, match=r"holds another run: model\.n_embd is 3 there, 5 here"):
        train(run, arguments=("model.n_embd=5",))
    with (
        pytest.raises(RunError, match="the corpus has sha256 "),
        Run.open(elsewhere, Corpus("mine", "other" * 30), TOKENIZER),
    ):
        pass


def test_the_run_grown_from_may_be_named_in_any_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    train(run, event_of(1), arguments=("train.grow_from=par",))
    for name in ("./par", "par/", "../" + tmp_path.name + "/par", str(tmp_path / "par")):
        train(run, arguments=(f"train.grow_from={name}",))
    with pytest.raises(RunError, match=r"train\.grow_from is \S+ there, other here"):
        train(run, arguments=("train.grow_from=other",))


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: "# note\n" + text,
        lambda text: text.replace('"step": 2', '"step": 3'),
        lambda text: text.partition("\n")[2],
        lambda text: "[]\n" + text,
        lambda text: "\0" * 5 + "\n" + text,
        lambda text: "",
    ],
)
def test_edited_metrics_are_named_and_left_alone(run, edit):
    path = run / "metrics.jsonl"
    path.write_text(edit(path.read_text()))
    before = contents(run)
    with pytest.raises(RunError, match=r"metrics\.jsonl was changed: its rows up to step 5"):
        train(run, event_of(6))
    assert contents(run) == before


def test_missing_metrics_are_called_missing(run):
    (run / "metrics.jsonl").unlink()
    with pytest.raises(
        RunError, match=r"cannot read .*metrics\.jsonl: No such file or directory; overwrite=true starts over"
    ):
        train(run)
    train(run, event_of(1), arguments=("overwrite=true",))
    assert [row["step"] for row in rows_of(run)] == [1]


def test_rows_after_the_checkpoint_are_dropped(run):
    whole = (run / "metrics.jsonl").read_bytes()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "train_loss": 9.9}\n{"step": 7, "tr')  # the process was killed here
    train(run)
    assert (run / "metrics.jsonl").read_bytes() == whole


@pytest.mark.parametrize("what", ["checkpoint", "manifest", "steps"])
def test_overwriting_removes_the_run_and_nothing_else(run, what):
    """Also one that was killed while it was overwritten or saved."""
    (run / "notes.md").write_text("mine")
    (run / "steps" / "2025").mkdir()
    (run / "steps" / "2025" / "photo.jpg").write_text("precious")
    (run / "steps" / "3.orbax-checkpoint-tmp-removed").mkdir()
    manifest = read_manifest(run)
    if what == "manifest":
        manifest.replace(checkpoints=[], pending=[3, 5]).write(run)
    elif what == "steps":
        shutil.rmtree(run / "steps" / "5")
    train(run, event_of(1), arguments=("overwrite=true", "model.n_embd=4"))
    assert steps_in(run) == ["1", "2025"]
    assert (run / "steps" / "2025" / "photo.jpg").read_text() == "precious"
    assert (run / "notes.md").read_text() == "mine"
    assert [row["step"] for row in rows_of(run)] == [1]
    train(run, event_of(1), arguments=("overwrite=true",))
    assert steps_in(run) == ["1", "2025"]


def test_overwriting_keeps_steps_on_the_disk_they_are_linked_to(run):
    large = (run / "steps").rename(run.parent / "large")
    (run / "steps").symlink_to(large)
    train(run, event_of(1), arguments=("overwrite=true",))
    assert (run / "steps").readlink() == large
    assert os.listdir(large) == ["1"]
    large.rename(run.parent / "unmounted")
    before = contents(run)
    with pytest.raises(RunError, match="steps is not a folder, or a link to one that is missing"):
        train(run, event_of(2))
    assert contents(run) == before


def test_lost_checkpoints_are_not_looked_for(run):
    """The run continues from the one before them, and starts over if there is none."""
    shutil.rmtree(run / "steps" / "5")
    chex.assert_trees_all_equal(train(run), state_of(3))
    assert [row["step"] for row in rows_of(run)] == [1, 2, 3]
    shutil.rmtree(run / "steps")
    chex.assert_trees_all_equal(train(run, event_of(1), arguments=("model.n_embd=4",)), state_of(0))
    assert [row["step"] for row in rows_of(run)] == [1]


def test_folders_of_others_in_steps_are_left_alone(run):
    """A folder of a year, a run within a run, a copy of a checkpoint: neither read, nor removed, nor written to."""
    steps = run / "steps"
    for name in ("2025", "4/steps/1", "1-backup", "7.orbax-checkpoint-tmp-1"):
        (steps / name).mkdir(parents=True)
        (steps / name / "data").write_text("precious")
    shutil.copytree(steps / "5", steps / "9")
    before = contents(steps)
    assert load_run(run).step == 5
    train(run, event_of(6, val=1.0), arguments=("checkpoint.keep=1",))
    after = contents(steps)
    own = ("3", "5", "6")
    assert {name: data for name, data in before.items() if name.split("/")[0] not in own} == {
        name: data for name, data in after.items() if name.split("/")[0] not in own
    }
    assert list(saved(run)) == [6]
    with pytest.raises(CheckpointError, match=r"checkpoint of step 9 .*steps/9 is in the way.*; step 6 is kept"):
        train(run, event_of(9, 3))
    assert contents(steps) == after


def test_a_damaged_neighbor_does_not_stop_a_run(run):
    shutil.rmtree(run / "steps" / "3" / "state")
    train(run, event_of(6, val=1.0), arguments=("checkpoint.keep=1",))
    assert steps_in(run) == ["6"]


def failing(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def silent(*_, **__):
    pass


def incomplete(path, arrays, **_):
    """As Orbax for a path it takes for a pattern: it finds nothing to merge and says nothing."""
    SAVE(path, arrays)
    os.unlink(os.path.join(path, "state", "manifest.ocdbt"))


SAVE = ocp.save


@pytest.mark.parametrize(
    ("save", "reason"),
    [(failing, "No space left on device"), (silent, "cannot be read"), (incomplete, "cannot be read")],
)
def test_nothing_is_called_saved_that_cannot_be_read(run, monkeypatch, save, reason):
    """And nothing earlier is removed for it."""
    monkeypatch.setattr(ocp, "save", save)
    with pytest.raises(CheckpointError, match=rf"cannot write the checkpoint of step 6 .*{reason}.*; step 5 is kept"):
        train(run, event_of(6, val=0.1), arguments=("checkpoint.keep=1",))
    monkeypatch.undo()
    assert list(saved(run)) == [3, 5]
    chex.assert_trees_all_equal(train(run, event_of(6)), state_of(5))
    assert steps_in(run) == ["3", "5", "6"]


def test_a_first_save_that_fails_says_that_nothing_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(ocp, "save", failing)
    with pytest.raises(CheckpointError, match="no earlier step was saved"):
        train(tmp_path / "run", event_of(1))


def test_two_may_not_train_in_one_directory_and_a_lock_file_alone_does_not_block(run):
    (run / ".lock").write_text("left by a dead process")
    refused = []

    def second():
        try:
            train(run)
        except RunError as error:
            refused.append(str(error))

    with Run.open(config_of(run), CORPUS, TOKENIZER):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "another process is training in" in refused[0]
    train(run)


@pytest.mark.parametrize("answer", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_no_obstacle(run, monkeypatch, answer):
    fcntl = pytest.importorskip("fcntl")

    def flock(*_):
        raise OSError(answer, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    train(run)
    train(run)


def test_files_of_the_user_are_not_touched_if_there_is_no_run_of_ours(tmp_path):
    for name in ("config.yaml", "corpus.txt", "metrics.jsonl", "steps/5/data.csv", "tokenizer.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    for option in ("overwrite=false", "overwrite=true"):
        with pytest.raises(RunError, match="holds no run but other files"):
            train(tmp_path, arguments=(option,))
    assert contents(tmp_path) == before
    (tmp_path / MANIFEST).write_text('{"name": "a run of another program"}')
    with pytest.raises(RunError, match=r"run\.json is not the manifest of a run"):
        train(tmp_path, arguments=("overwrite=true",))


@pytest.mark.parametrize("option", ["overwrite=false", "overwrite=true"])
@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("metrics.jsonl", "refused"),
        (".lock", "refused"),
        ("run.json", "replaced"),
        ("config.yaml", "replaced"),
        ("corpus.txt", "replaced"),
        ("tokenizer.json", "replaced"),
        ("result.json", "replaced"),
        ("decomposition.json", "replaced"),
        ("steps/3", "removed"),
        ("steps/3.orbax-checkpoint-tmp", "removed"),
        ("metrics.jsonl.unfinished", "left"),
        ("config.yaml.unfinished", "left"),
        (".babyjax-x", "removed"),
        ("notes", "left"),
    ],
)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_nothing_is_written_through_a_link_in_a_received_run(run, name, outcome, option, kind):
    """The victim is the file that the link replaces, so that every digest is right, or a checkpoint of another run."""
    victim, link = run.parent / "victim", run / name
    if link.exists():
        link.rename(victim)
    elif kind == "folder":
        shutil.copytree(run / "steps" / "5", victim)
    else:
        victim.write_text("precious")
    link.symlink_to(victim)
    before = contents(run.parent / "victim") if victim.is_dir() else victim.read_bytes()
    refusal = pytest.raises(BabyjaxError, match=re.escape(f"{link} is a symbolic link"))
    opening = Run.open(config_of(run, option, "checkpoint.keep=1"), CORPUS, TOKENIZER)
    with refusal if outcome == "refused" else contextlib.nullcontext(), opening as opened:
        opened.restore(state_of(0))
        opened.begin()
        opened.record(event_of(6, val=0.1, last=True), evaluated=True)
        opened.write_decomposition({})
        opened.wait()
    after = contents(run.parent / "victim") if victim.is_dir() else victim.read_bytes()
    assert after == before
    if outcome == "removed":
        assert not os.path.lexists(link)
    elif outcome == "replaced" and not (option == "overwrite=false" and name in ("corpus.txt", "tokenizer.json")):
        assert link.is_file()
        assert not link.is_symlink()


def test_links_of_steps_to_folders_of_others_lose_nothing(run):
    """The manifest of a received run lists a folder that only looks like a step of it."""
    photos = run.parent / "photos"
    for name in ("2025", "3", "5"):
        (photos / name).mkdir(parents=True)
        (photos / name / "photo.jpg").write_text("precious")
    shutil.rmtree(run / "steps")
    (run / "steps").symlink_to(photos)
    read_manifest(run).replace(pending=[2025]).write(run)
    before = contents(photos)
    with pytest.raises(CheckpointError, match="steps/5 cannot be read"):
        train(run)
    train(run, event_of(1), arguments=("overwrite=true",))
    assert {name: data for name, data in contents(photos).items() if name.partition("/")[0] != "1"} == before


def test_digests_are_those_of_sha256sum(run):
    manifest = read_manifest(run)
    for name, expected in manifest.files.items():
        assert hashlib.sha256((run / name).read_bytes()).hexdigest() == expected
    assert manifest.checkpoints[-1].metrics_sha256 == hashlib.sha256((run / "metrics.jsonl").read_bytes()).hexdigest()


def test_a_folder_that_cannot_be_written_is_told(run, monkeypatch):
    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(RunError, match=r"cannot write in the run directory .*: No space left on device"):
        train(run)

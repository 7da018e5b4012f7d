import errno
import json
import threading

import chex
import jax
import numpy as np
import pytest

from babyjax import BabyGPT, CharTokenizer, Corpus, files, load_run, read_corpus
from babyjax.config import load_config
from babyjax.errors import BabyjaxError, DataError, RunError
from babyjax.training.checkpoint import discard
from babyjax.training.optimizer import make_optimizer
from babyjax.training.run import RunDirectory, describe
from babyjax.training.step import init_state

CORPUS = Corpus("mine", "abcd" * 30)
TOKENIZER = CharTokenizer.fit(CORPUS.text)
OPTIMIZER = make_optimizer(load_config([]).optimizer, 5000)


def state_of(seed):
    return init_state(BabyGPT(4, 32, key=jax.random.key(seed)), OPTIMIZER)


def config_of(path, *arguments):
    return load_config([f"run_dir={path}", "data.path=mine.txt", *arguments])


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / "run")
    assert not run.exists()
    run.create(config_of(run.path), TOKENIZER, CORPUS)
    return run


def save(run, *steps, **losses):
    about = describe(config_of(run.path), TOKENIZER, CORPUS)
    for step in steps:
        run.checkpoints.save(state_of(step), step, 5, losses, about)
    run.checkpoints.wait()


def test_a_run_needs_only_its_directory(run):
    save(run, 7)
    loaded = load_run(run.path)
    assert loaded.step == 7
    chex.assert_trees_all_equal(loaded.model, state_of(7).model)
    assert (loaded.tokenizer, loaded.config) == (TOKENIZER, config_of(run.path))
    assert run.corpus() == CORPUS


def test_steps_are_chosen_by_number_newest_or_best(run):
    save(run, 10, val=2.0)
    save(run, 20, val=1.0)
    save(run, 30, val=3.0)
    save(run, 40)
    assert {which: load_run(run.path, which).step for which in ("newest", "best", "30")} == {
        "newest": 40,
        "best": 20,
        "30": 30,
    }
    for which in ("11", "worst", "-1", "1.5", ""):
        with pytest.raises(RunError, match=f"no checkpoint of step '{which}'; there are newest, best, 10, 20, 30, 40"):
            load_run(run.path, which)


def test_best_is_the_newest_where_nothing_was_evaluated(run):
    save(run, 3, 5)
    assert run.choose_step("best") == 5


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
    with pytest.raises(RunError, match=r"config\.yaml is not the configuration"):
        load_run(run.path)


def test_only_the_same_run_may_be_continued(run):
    save(run, 4)
    more = config_of(run.path, "train.steps=9", "data.path=elsewhere/mine.txt")
    run.check_same_run(more, CORPUS)
    with pytest.raises(RunError, match=r"holds another run: model\.n_embd is 32 there, 5 here"):
        run.check_same_run(config_of(run.path, "model.n_embd=5"), CORPUS)
    with pytest.raises(RunError, match="the corpus has sha256 "):
        run.check_same_run(config_of(run.path), Corpus("mine", "other" * 30))
    run.add_rows([{"step": step, "train_loss": 1.0} for step in range(1, 5)])
    run.rewind(more, 4)
    assert run.config() == more


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("corpus.txt", lambda text: text + "a", r"corpus\.txt is another"),
        ("tokenizer.json", lambda text: text.replace("abcd", "abce"), r"tokenizer\.json is another"),
        ("config.yaml", lambda text: text.replace("n_embd: 32", "n_embd: 31"), r"model\.n_embd is 32 there, 31 here"),
    ],
)
def test_files_changed_since_the_checkpoint_are_named(run, name, change, complaint):
    save(run, 1)
    path = run.path / name
    changed = change(path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(RunError, match=f"are not those its checkpoint was made with: {complaint}"):
        load_run(run.path).corpus()


@pytest.mark.parametrize("content", ["", "{", '{"type": "bpe"}', "\0"])
def test_a_damaged_tokenizer_is_refused(run, content):
    save(run, 1)
    (run.path / "tokenizer.json").write_text(content)
    with pytest.raises(BabyjaxError, match="tokenizer"):
        load_run(run.path)


def test_starting_anew_removes_the_run_and_nothing_else(run):
    save(run, 1)
    run.add_rows([{"step": 1}])
    (run.path / "notes.md").write_text("mine")
    run.create(config_of(run.path), TOKENIZER, CORPUS)
    assert run.checkpoints.steps() == []
    names = {item.name for item in run.path.iterdir()}
    assert names == {"config.yaml", "corpus.txt", "notes.md", "steps", "tokenizer.json"}


def test_two_may_not_train_in_one_directory_and_a_lock_file_alone_does_not_block(run):
    (run.path / ".lock").write_text("left by a dead process")
    with run.locked():
        refused = []

        def second():
            try:
                with RunDirectory(run.path).locked():
                    pass
            except RunError as error:
                refused.append(str(error))

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert "another process is training in" in refused[0]
    with run.locked():
        pass


@pytest.mark.parametrize("answer", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_no_obstacle(run, monkeypatch, answer):
    fcntl = pytest.importorskip("fcntl")

    def flock(*_):
        raise OSError(answer, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    with run.locked():
        pass


def test_nothing_of_the_users_is_touched_where_there_is_no_run_of_ours(tmp_path):
    files = {"config.yaml": "lr: 0.1", "corpus.txt": "mine", "tokenizer.json": "{}", "steps/raw/data.csv": "1,2"}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(RunError, match=r"config\.yaml is not the configuration of a run"):
        RunDirectory(tmp_path).exists()
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(RunError, match="holds no run but other files"):
        RunDirectory(tmp_path).exists()
    assert {name: (tmp_path / name).read_text() for name in list(files)[1:]} == {n: files[n] for n in list(files)[1:]}


@pytest.mark.parametrize("written", ["config.yaml", "corpus.txt", "tokenizer.json"])
def test_a_run_killed_while_it_is_created_is_begun_again(tmp_path, monkeypatch, written):
    run, real = RunDirectory(tmp_path / "run"), files.os.replace

    def die(source, target):
        if str(target).endswith(written):
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(files.os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        run.create(config_of(run.path), TOKENIZER, CORPUS)
    monkeypatch.undo()
    run.exists()
    assert run.checkpoints.steps() == []
    run.create(config_of(run.path), TOKENIZER, CORPUS)
    save(run, 1)
    assert load_run(run.path).corpus() == CORPUS


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
def test_edited_metrics_are_named(run, edit):
    save(run, 3)
    run.add_rows([{"step": step, "train_loss": 1.0} for step in (1, 2, 3)])
    path = run.path / "metrics.jsonl"
    path.write_text(edit(path.read_text()))
    before = path.read_text()
    with pytest.raises(RunError, match=r"metrics\.jsonl was edited"):
        run.rewind(config_of(run.path), 3)
    assert path.read_text() == before


def test_a_run_may_be_read_while_it_trains_and_drops_old_steps(run, monkeypatch):
    save(run, 1, 2)
    real = run.checkpoints.__class__.load

    def load(self, step):
        if step == 2:  # meanwhile the trainer saves step 3 and drops step 2
            save(run, 3)
            discard(run.path / "steps" / "2")
        return real(self, step)

    monkeypatch.setattr(run.checkpoints.__class__, "load", load)
    assert load_run(run.path).step == 3


@pytest.mark.parametrize("path", ["~nosuchuser/run", "x" * 300, "a\0b"])
def test_a_path_that_cannot_be_one_is_refused(path):
    with pytest.raises(RunError, match="is not a path this system can use"):
        RunDirectory(path)
    with pytest.raises(DataError):
        read_corpus(path)


def test_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(RunError):
        RunDirectory(tmp_path / "loop").exists()


def test_rewinding_restores_the_metrics(run):
    save(run, 2)
    path = run.path / "metrics.jsonl"
    first = {"step": 1, "train_loss": 2.5}
    second = {"step": 2, "train_loss": float("inf"), "exact_train_loss": 2.0, "val_loss": 2.0}
    run.add_rows([first, second, {"step": 3, "train_loss": 9.9}])
    with path.open("a") as file:
        file.write('{"step": 4, "tr')  # the process was killed here
    every_two = config_of(run.path, "train.eval_interval=2")
    run.rewind(every_two, 2)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [first, {**second, "train_loss": None}]
    run.rewind(config_of(run.path, "train.eval_interval=3"), 2)  # step 2 was evaluated because the run ended there
    assert [json.loads(line) for line in path.read_text().splitlines()] == [first, {"step": 2, "train_loss": None}]


def test_what_a_checkpoint_says_of_its_run(run):
    save(run, 3, val=1.5)
    about = run.checkpoints.load(3).about
    assert about["schema_version"] == 1
    assert (about["step"], about["losses"]) == (3, {"val": 1.5})
    assert about["config"]["model"]["n_embd"] == 32
    assert about["tokenizer"]["type"] == "char"
    assert about["tokenizer"]["vocab_size"] == 4
    assert about["corpus"] == {"name": "mine", "characters": 120, "sha256": CORPUS.sha256}
    assert about["versions"]["jax"] == jax.__version__
    assert about["versions"]["numpy"] == np.__version__

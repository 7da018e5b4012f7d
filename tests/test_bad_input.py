"""Whatever a user gets wrong gets one sentence and an exit status, no traceback, and nothing is lost."""

import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import babyjax
from babyjax.errors import BabyjaxError, ConfigError, DataError, RunError, TokenError
from babyjax.train import main as train

USAGE, FAILURE = 2, 1
HUGE = "99999999999999999999999"

USAGE_ERRORS = [
    # names
    ("train model=babygtp", "unknown model 'babygtp'; did you mean babygpt?"),
    ("train model=", "unknown model ''; choose from babygpt, babygpt-v2-position, "),
    ("train data=shakespear", "unknown data 'shakespear'; did you mean shakespeare?"),
    ("train trainer=count", "unknown trainer 'count'; did you mean counts?"),
    ("train trainer.starts=2", "trainer.starts= is for trainer=counts, not for trainer=sgd"),
    ("train trainer=counts trainer.tolerance=small", "trainer.tolerance=small is not a number"),
    ("train trainer=counts trainer.choose=penalty trainer.penalty=0.1", "cannot both be given"),
    ("train trainer=counts trainer.choose=smoothing trainer.smoothing=0.1", "cannot both be given"),
    ("train trainer=counts trainer.choose=k", "unknown value of trainer.choose: 'k'"),
    *[(f"train trainer=counts trainer.tolerance={value}", "is out of range") for value in ("0", "-1", "nan", "2")],
    *[(f"train trainer=counts trainer.smoothing={value}", "is out of range") for value in ("-1", "inf")],
    *[(f"train trainer=counts trainer.penalty={value}", "is out of range") for value in ("-1", "nan")],
    *[(f"train trainer=counts trainer.starts={value}", "is out of range") for value in ("0", HUGE)],
    ("train optimizer=adam", "unknown optimizer 'adam'; did you mean adamw?"),
    ("train train.step=3", "unknown option 'train.step'; did you mean train.steps?"),
    ("train block_size=3", "unknown option 'block_size'; did you mean model.block_size?"),
    ("train model.layers=3", "unknown option 'model.layers'"),
    ("train model=bigram model.n_embd=3", "model.n_embd= is for model=babygpt, not for model=bigram"),
    ("train data.length=9", "data.length= is for data=synthetic, not for data=pydocs"),
    ("train +train.steps=3", "unknown option '+train.steps'"),
    ("train --steps=3", "'--steps=3' is not an option; options are written key=value"),
    ("train babygpt", "'babygpt' is not an option"),
    ("train -m model=babygpt", "'-m' is not an option"),
    ("train =5", "'=5' is not an option"),
    # types
    ("train train.steps=many", "train.steps=many is not an integer"),
    ("train train.steps=1e3", "train.steps=1e3 is not an integer"),
    ("train train.seed=1.5", "train.seed=1.5 is not an integer"),
    ("train train.batch_size=", "train.batch_size= is not an integer"),
    ("train train.seed=1,2,3", "train.seed=1,2,3 is not an integer"),
    ("train optimizer.learning_rate=fast", "optimizer.learning_rate=fast is not a number"),
    ("train model.head_bias=perhaps", "model.head_bias=perhaps is not true or false"),
    ("train overwrite=1", "overwrite=1 is not true or false"),
    ("train data.tokenizer=bpc", "not char, byte, bpe or the path of a tokenizer.json; did you mean bpe?"),
    ("train data.vocab_size=300", "data.vocab_size=300 is for data.tokenizer=bpe, not char"),
    ("train data.tokenizer=bpe data.vocab_size=257", "data.vocab_size=257 is out of range"),
    ("train model=bigram model.counting=all", "unknown value of model.counting: 'all'"),
    # ranges
    *[(f"train train.steps={value}", f"train.steps={value} is out of range") for value in ("0", "-1", HUGE)],
    *[(f"train train.batch_size={value}", "is out of range; it must lie in [1, ") for value in ("0", "-8", HUGE)],
    *[(f"train train.eval_interval={value}", "is out of range") for value in ("0", "-1", HUGE)],
    *[(f"train train.seed={value}", "is out of range; it must lie in [0, ") for value in ("-1", HUGE)],
    *[(f"train checkpoint.interval={value}", "is out of range") for value in ("0", HUGE)],
    *[(f"train checkpoint.keep={value}", "is out of range") for value in ("0", HUGE)],
    *[(f"train checkpoint.seconds={value}", "is out of range") for value in ("0", "-1", "inf")],
    *[(f"train model.n_embd={value}", "is out of range") for value in ("-1", HUGE)],
    *[(f"train model.block_size={value}", "is out of range") for value in ("0", "-1", HUGE)],
    *[(f"train optimizer.learning_rate={value}", "is out of range") for value in ("nan", "inf", "-1", "1e300")],
    *[(f"train optimizer.beta1={value}", "it must lie in [0, 1)") for value in ("1", "-0.1", "nan")],
    *[(f"train optimizer.beta2={value}", "it must lie in [0, 1)") for value in ("1", "2")],
    *[(f"train optimizer.eps={value}", "is out of range") for value in ("0", "-1e-8", "inf", "1e-300")],
    *[(f"train optimizer.weight_decay={value}", "is out of range") for value in ("-0.1", "nan")],
    *[(f"train optimizer.final_fraction={value}", "it must lie in [0, 1]") for value in ("-0.1", "2")],
    *[(f"train model=bigram model.smoothing={value}", "is out of range") for value in ("-1", "nan", "1e99")],
    *[(f"train data=synthetic data.states={value}", "is out of range") for value in ("0", HUGE)],
    *[(f"train data=synthetic data.length={value}", "is out of range") for value in ("0", HUGE)],
    ("train data=synthetic data.seed=-1", "is out of range"),
    *[(f"sample run_dir=RUN temperature={value}", "is out of range") for value in ("-1", "nan", "inf")],
    *[(f"sample run_dir=RUN max_new_tokens={value}", "is out of range") for value in ("0", "-5", HUGE)],
    *[(f"sample run_dir=RUN num_samples={value}", "is out of range") for value in ("0", HUGE)],
    *[(f"sample run_dir=RUN top_k={value}", "is out of range") for value in ("-1", HUGE)],
    *[(f"sample run_dir=RUN top_p={value}", "is out of range") for value in ("0", "1.1", "nan")],
    *[(f"sample run_dir=RUN min_p={value}", "is out of range") for value in ("-1", "1.1")],
    # options that contradict each other
    ("train model=bigram trainer=counts", "model=bigram is trained by trainer=counting"),
    ("train trainer=counting", "model=babygpt is trained by trainer=sgd or trainer=counts, not by trainer=counting"),
    ("train model=gpt-tiny trainer=counts", "trainer=counts is for v1 in float32"),
    ("train model.dropout=0.1", "model.dropout= is for models with blocks"),
    ("train trainer=counts optimizer=lion", "trainer=counts has no optimizer"),
    ("train data=synthetic data.path=fine.txt", "data=synthetic and data.path= cannot both be given"),
    ("train train.accumulation=5", "train.accumulation=5 does not divide train.batch_size=32"),
    # files of options
    ("train config=nothing.yaml", "cannot read config=nothing.yaml: No such file or directory"),
    ("train config=fine.txt", "config=fine.txt is not a table of options"),
    ("train config=brackets.json", "config=brackets.json is not a file of options: it is larger than 65,536 bytes"),
    ("sample config=fine.txt", "unknown option 'config'"),
    # what is missing
    ("sample", "run_dir=DIR is missing"),
    ("sample run_dir=", "run_dir=DIR is missing"),
    ("evaluate", "run_dir=DIR is missing"),
    ("sample run_dir=RUN promt=a", "unknown option 'promt'; did you mean prompt?"),
    ("prepare qqqqqqq=1", "choose from data.path, data.field, data.tokenizer, data.vocab_size, out"),
    ("evaluate run_dir=RUN format=xml", "unknown value of format: 'xml'; choose from text, json"),
    ("evaluate run_dir=RUN stride=2", "stride= is for models with a block; babygpt uses all the context it can"),
]

FAILURES = [
    ("train trainer=counts model.n_embd=2000000000", "this device has"),
    # texts
    ("train data.path=nothing.txt", "cannot read nothing.txt: No such file or directory"),
    ("train data.path=none", "cannot read none: No such file or directory"),
    ("train data.path=folder", "there is no file with a name ending in .txt or .jsonl, or these and .gz, in folder"),
    ("train data.path=empty.txt", "empty.txt is empty"),
    ("train data.path=/dev/null", "/dev/null is empty"),
    ("train data.path=bom.txt", "bom.txt is empty"),
    ("train data.path=one.txt", "too short for a block of 8"),
    ("train data.path=short.txt", "too short for a block of 8"),
    ("train data.path=short.txt model.block_size=1", "too short to keep 10 % for validation"),
    ("train data.path=latin1.txt", "latin1.txt is not UTF-8 text (byte 3 is 0xe9); convert it"),
    ("train data.path=utf16.txt", "utf16.txt is not UTF-8 text (byte 0 is 0xff)"),
    ("train data.path=picture.png", "picture.png is not UTF-8 text"),
    ("train data.path=nul.txt", "nul.txt is not text: it has a NUL byte at character 3"),
    ("train data.path=fine.txt model.block_size=900", "too short for a block of 900"),
    ("train data=synthetic data.length=5", "too short"),
    # sizes
    ("train data.path=fine.txt model.n_embd=1000000000", "a model of 20,000,000,010 parameters needs"),
    # folders
    ("train data.path=fine.txt run_dir=fine.txt", "fine.txt is a file; it must be a folder"),
    ("train data.path=fine.txt run_dir=.", "holds no run but other files (BAD_TOKENIZER)"),
    ("train data.path=fine.txt run_dir=. overwrite=true", "holds no run but other files (BAD_TOKENIZER)"),
    ("train data.path=fine.txt run_dir=fine.txt/below", "cannot write in the run directory"),
    ("train data.path=fine.txt run_dir=/proc/babyjax", "cannot write in the run directory /proc/babyjax"),
    ("train data.path=fine.txt run_dir=x[1]", "contains '[', which checkpoints cannot be stored under; rename it"),
    ("train data.path=fine.txt run_dir=RUN", "holds another run: the corpus has sha256"),
    (
        "train data.path=RUN/corpus.txt run_dir=RUN model.n_embd=5",
        "holds another run: model.n_embd is 32 there, 5 here",
    ),
    (
        "train model=bigram data.path=RUN/corpus.txt run_dir=RUN",
        "holds another run: model is babygpt there, bigram here",
    ),
    ("train data.path=RUN/corpus.txt run_dir=RUN data.tokenizer=byte", "data.tokenizer is char there, byte here"),
    ("sample run_dir=nowhere", "there is no run in"),
    ("sample run_dir=none", "there is no run in"),
    ("sample run_dir=fine.txt", "fine.txt is a file; it must be a folder"),
    ("sample run_dir=.", "holds no run but other files"),
    ("sample run_dir=RUN step=7", "there is no checkpoint of step '7'; choose from newest, best, 20, 30"),
    ("sample run_dir=RUN step=-1", "there is no checkpoint of step '-1'"),
    ("sample run_dir=RUN step=" + 5000 * "1", "there is no checkpoint of step '11111111111111111111'"),
    ("evaluate run_dir=RUN step=last", "there is no checkpoint of step 'last'"),
    ("evaluate run_dir=nowhere", "there is no run in"),
    # prompts
    ("sample run_dir=RUN prompt=aZ", "character 'Z' (U+005A) at position 1 is not among the 3 characters"),
    ("sample run_dir=RUN prompt=语", "character '语' (U+8BED) at position 0 is not among"),
    # damaged runs
    ("sample run_dir=NO_CHECKPOINT", "has no checkpoint yet; finish training or importing it first"),
    ("evaluate run_dir=NO_TOKENIZER", "tokenizer.json: No such file"),
    ("evaluate run_dir=BAD_TOKENIZER", "tokenizer.json was changed"),
    ("evaluate run_dir=EDITED", "run.json was changed after it was written"),
    ("evaluate run_dir=CUT", "run.json is not the manifest of a run"),
    ("evaluate run_dir=BRACKETS", "run.json is not the manifest of a run"),
    ("train data.path=RUN/corpus.txt run_dir=CUT", "run.json is not the manifest of a run"),
    ("evaluate run_dir=OTHER_CORPUS", "corpus.txt was changed"),
    ("sample run_dir=TRUNCATED", "steps/30 cannot be read"),
    ("train data.path=RUN/corpus.txt run_dir=TRUNCATED train.steps=40", "remove that folder to use step 20"),
    ("train data.path=RUN/corpus.txt run_dir=NO_METRICS train.steps=40", "metrics.jsonl: No such file"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with texts and runs, good and bad."""
    home = tmp_path_factory.mktemp("home")
    (home / "folder").mkdir()
    (home / "empty.txt").write_bytes(b"")
    (home / "bom.txt").write_bytes(b"\xef\xbb\xbf")
    (home / "one.txt").write_text("a")
    (home / "short.txt").write_text("abcabc")
    (home / "fine.txt").write_text("abcdefghij" * 50)
    (home / "latin1.txt").write_bytes("café".encode("latin1"))
    (home / "utf16.txt").write_bytes("hello".encode("utf-16"))
    (home / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (home / "nul.txt").write_bytes(b"abc\0def")
    (home / "RUN_corpus.txt").write_text("ab\n" * 100)
    (home / "brackets.json").write_text("[" * 200_000)
    run = home / "RUN"
    options = ["train.steps=30", "train.eval_interval=10", "checkpoint.interval=10", f"run_dir={run}"]
    assert train([f"data.path={home / 'RUN_corpus.txt'}", *options]) == 0
    damaged = (
        "NO_CHECKPOINT",
        "NO_TOKENIZER",
        "BAD_TOKENIZER",
        "EDITED",
        "CUT",
        "BRACKETS",
        "OTHER_CORPUS",
        "TRUNCATED",
    )
    for name in (*damaged, "NO_METRICS"):
        shutil.copytree(run, home / name)
    shutil.rmtree(home / "NO_CHECKPOINT" / "steps")
    (home / "NO_TOKENIZER" / "tokenizer.json").unlink()
    (home / "NO_METRICS" / "metrics.jsonl").unlink()
    (home / "BAD_TOKENIZER" / "tokenizer.json").write_text("[" * 200_000)
    manifest = (run / "run.json").read_text()
    (home / "EDITED" / "run.json").write_text(manifest.replace('"val": ', '"val": 1'))
    (home / "CUT" / "run.json").write_text(manifest[:100])
    (home / "BRACKETS" / "run.json").write_text("[" * 200_000)
    (home / "OTHER_CORPUS" / "corpus.txt").write_text("ba\n" * 100)
    for path in (home / "TRUNCATED" / "steps" / "30").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:10])
    return home


def contents(folder):
    """Every file below `folder` and what is in it, lock files aside."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path: path.read_bytes() for path in files}


CASES = [(line, USAGE, complaint) for line, complaint in USAGE_ERRORS]
CASES += [(line, FAILURE, complaint) for line, complaint in FAILURES]


@pytest.mark.parametrize(("line", "status", "complaint"), CASES, ids=[line[:80] for line, _, _ in CASES])
def test_bad_input_gets_one_sentence_and_changes_nothing(call, monkeypatch, home, line, status, complaint):
    monkeypatch.chdir(home)
    before = contents(home)
    name, *arguments = line.split(" ")
    code, _, err = call(name, *arguments)
    assert (code, err[:7], err.count("\n")) == (status, "error: ", 1)
    assert complaint in err
    assert len(err) < 1000
    assert {path: data for path, data in contents(home).items() if "checkpoints" not in path.parts} == before


@pytest.mark.slow
def test_a_batch_that_cannot_fit_is_refused(command, tmp_path):
    (tmp_path / "fine.txt").write_text("abcdefghij" * 50)
    ran = command("train", "data.path=fine.txt", "train.batch_size=2000000000")
    assert (ran.returncode, ran.stderr.count("\n"), "tokens needs" in ran.stderr) == (FAILURE, 1, True)


def test_there_are_enough_of_them():
    assert len({line for line, _, _ in CASES}) >= 150


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("train data.path=latin1.txt", FAILURE),
        pytest.param("sample run_dir=RUN prompt=语", FAILURE, marks=pytest.mark.slow),
        ("evaluate format=xml", USAGE),
    ],
)
def test_the_same_from_a_shell(home, line, status):
    program = [sys.executable, "-m", "babyjax", *line.split(" ")]
    ran = subprocess.run(program, cwd=home, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (status, "")
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("\n") == 1


def test_an_edited_config_yaml_changes_nothing(call, home, tmp_path):
    """It says how to train the run again; what the run is stands in its manifest."""
    shutil.copytree(home / "RUN", tmp_path / "RUN")
    (tmp_path / "RUN" / "config.yaml").write_text("model: [")
    assert call("sample", "run_dir=RUN", "max_new_tokens=5")[0] == 0


@pytest.mark.parametrize("text", ["aaaa" * 20, pytest.param("ab" * 20, marks=pytest.mark.slow)])
def test_a_vocabulary_of_one_or_two_characters_is_fine(call, tmp_path, text):
    (tmp_path / "mine.txt").write_text(text)
    for model in ("bigram", "babygpt"):
        code, out, err = call("train", f"model={model}", "data.path=mine.txt", f"run_dir={model}", "train.steps=20")
        assert (code, err) == (0, "")
        assert "bigram entropy 0.0000" in out
        code, out, err = call("sample", f"run_dir={model}", "max_new_tokens=5")
        assert (code, err, len(out)) == (0, "", 6)


@pytest.mark.slow
def test_the_unigram_model_trains_and_samples(call, tmp_path):
    """model.n_embd=0 leaves the bias of the head."""
    (tmp_path / "mine.txt").write_text("aaab" * 50)
    code, out, err = call("train", "model.n_embd=0", "data.path=mine.txt", "run_dir=here", "train.steps=20")
    assert (code, err) == (0, "")
    assert "vocabulary 2, 2 parameters" in out
    code, out, err = call("sample", "run_dir=here", "max_new_tokens=5")
    assert (code, err, len(out)) == (0, "", 6)


def test_other_windows_are_not_taken_for_counted_ones(call):
    options = ("model=bigram", "model.counting=windows", "data=synthetic", "data.length=3000", "run_dir=here")
    assert call("train", *options, "train.steps=10")[0] == 0
    code, _, err = call("train", *options, "train.steps=20")
    assert (code, err.startswith("error: ")) == (FAILURE, True)
    assert "holds another run: train.steps is 10 there, 20 here" in err
    code, _, err = call("train", *options, "train.steps=2000000000", "overwrite=true")
    assert (code, "pairs are more than an int32 counts" in err) == (FAILURE, True)


def test_a_corpus_edited_on_both_sides_is_noticed(call, tmp_path):
    options = ("data.path=mine.txt", "run_dir=here")
    (tmp_path / "mine.txt").write_text("ab\n" * 100)
    assert call("train", *options, "train.steps=10")[0] == 0
    for path in (tmp_path / "mine.txt", tmp_path / "here" / "corpus.txt"):
        path.write_text("ba\n" * 100)
    code, _, err = call("train", *options, "train.steps=20")
    assert (code, "the corpus has sha256" in err) == (FAILURE, True)


@pytest.mark.slow
def test_a_terminal_without_unicode_gets_text_all_the_same(call, command, tmp_path):
    (tmp_path / "mine.txt").write_text("明月几时有" * 50, encoding="utf-8")
    assert call("train", "model=bigram", "data.path=mine.txt", "run_dir=诗")[0] == 0
    options = ("prompt=明月", "max_new_tokens=5")
    sampled = command("sample", "run_dir=诗", *options, PYTHONIOENCODING="cp1252")
    assert (sampled.returncode, sampled.stderr, sampled.stdout[:2]) == (0, "", "明月")


def test_a_huge_learning_rate_stops_with_the_step_and_what_is_kept(call, tmp_path):
    (tmp_path / "mine.txt").write_text("abcabd" * 50)
    options = ["data.path=mine.txt", "run_dir=here", "optimizer.learning_rate=1e6", "optimizer.weight_decay=1e6"]
    code, _, err = call("train", *options, "checkpoint.interval=1")
    assert code == FAILURE
    assert err.startswith("error: ")
    assert " step " in err
    assert " is kept in here" in err or "no step was saved before" in err
    assert err.count("\n") == 1
    for step in (tmp_path / "here" / "steps").iterdir():
        loaded = babyjax.load_run("here", int(step.name))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(loaded.model))


@pytest.mark.parametrize("eps", ["1e-30", "1e6"])
def test_the_smallest_and_largest_eps_train(call, tmp_path, eps):
    (tmp_path / "mine.txt").write_text("abcabd" * 50)
    options = ("data.path=mine.txt", "run_dir=here", "train.steps=20")
    assert call("train", *options, f"optimizer.eps={eps}")[0] == 0


TINY, ZERO = babyjax.BabyGPTConfig(n_embd=3), np.zeros((1, 1), np.int32)


def generate(prompts, count, *options, **more):
    model = babyjax.BabyGPT(TINY, 5, jax.random.key(0))
    return babyjax.generate(model, prompts, jax.random.key(0), count, *options, **more)


def pairs():
    return babyjax.PairCounts.from_split(babyjax.split_tokens(np.arange(100, dtype=np.int32) % 9), 9)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: babyjax.count_matrix(np.array([0, 9], np.int32), 5), TokenError),
        (lambda: babyjax.count_matrix(np.array([[0, 1]], np.int32), 5), TokenError),
        (lambda: babyjax.count_chunks([np.array([0, -1], np.int32)], 5), TokenError),
        (lambda: babyjax.Bigram.from_tokens(np.array([7, 0], np.int32), 5), TokenError),
        (lambda: babyjax.Bigram(jnp.zeros((5, 5), jnp.int32), -0.5), ConfigError),
        (lambda: babyjax.CharTokenizer(""), TokenError),
        (lambda: babyjax.CharTokenizer("ba"), TokenError),
        (lambda: babyjax.CharTokenizer.fit(""), TokenError),
        (lambda: babyjax.CharTokenizer("ab").decode([0, 2]), TokenError),
        (lambda: babyjax.CharTokenizer("ab").decode([0.0, 1.0]), TokenError),
        (lambda: babyjax.ByteTokenizer().encode("\ud800"), TokenError),
        (lambda: babyjax.load_corpus("synthetic", states=0), DataError),
        (lambda: babyjax.load_corpus("synthetic", seed=-1), DataError),
        (lambda: babyjax.load_corpus("pydocs", states=3), DataError),
        (lambda: generate(ZERO + 5, 3), TokenError),
        (lambda: generate(ZERO - 1, 3), TokenError),
        (lambda: generate([[0.5]], 3), TokenError),
        (lambda: generate(ZERO[:, :0], 3), TokenError),
        (lambda: generate([], 3), TokenError),
        (lambda: generate(ZERO, -1), ConfigError),
        (lambda: generate(ZERO, 3, -1.0), ConfigError),
        (lambda: generate(ZERO, 3, 1.0, 0), ConfigError),
        (lambda: generate(ZERO, 3, vocab_size=0), ConfigError),
        (lambda: generate(ZERO, 3, vocab_size=6), ConfigError),
        (lambda: babyjax.BabyGPT(TINY, 0, jax.random.key(0)), ConfigError),
        (lambda: babyjax.BabyGPT(TINY.replace(vocab_size=4), 5, jax.random.key(0)), ConfigError),
        (lambda: TINY.replace(n_layer=1, n_head=0), ConfigError),
        (lambda: TINY.replace(n_layer=1, activation="tanh"), ConfigError),
        (lambda: TINY.replace(initialization="xavier"), ConfigError),
        (lambda: babyjax.presets["babygpt-v99"], ConfigError),
        (lambda: babyjax.load_config(["train.accumulation=0"]), ConfigError),
        (lambda: babyjax.make_advance(optax.sgd, 4, 8, accumulation=0), ConfigError),
        (lambda: babyjax.make_advance(optax.sgd, 4, 8, accumulation=3), ConfigError),
        (
            lambda: babyjax.ExactEvaluator(pairs(), np.ones(9, np.int64))(babyjax.BabyGPT(TINY, 5, jax.random.key(0))),
            ConfigError,
        ),
        (lambda: babyjax.fit_counts(pairs(), 3, penalty=-1.0), ConfigError),
        (lambda: babyjax.fit_counts(pairs(), 3, smoothing=-1.0), ConfigError),
        (lambda: babyjax.load_run("nowhere", 30), RunError),
    ],
)
def test_library_calls_raise_errors_of_one_hierarchy(make, kind):
    with pytest.raises(kind) as caught:
        make()
    assert isinstance(caught.value, BabyjaxError)
    assert len(str(caught.value)) < 200


def test_a_step_to_load_may_be_a_number(home):
    assert babyjax.load_run(home / "RUN", 20).step == babyjax.load_run(home / "RUN", "20").step == 20
    with pytest.raises(RunError, match="there is no checkpoint of step '25'"):
        babyjax.load_run(home / "RUN", 25)

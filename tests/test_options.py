import json
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from babyjax.config import BabyGPTConfig, BigramConfig, SyntheticConfig
from babyjax.errors import ConfigError
from babyjax.evaluate import EvaluateConfig
from babyjax.options import (
    arguments_of,
    config_from_dict,
    config_to_dict,
    corpus_name,
    differences,
    load_config,
    options_of,
    read_options,
    steps_are_bound,
)
from babyjax.recipes import PRESETS
from babyjax.sample import SampleConfig


def value_of(key, *arguments):
    return {name: value for name, value, _ in options_of(load_config([*arguments]))}[key]


def test_without_arguments_it_is_babygpt_on_pydocs():
    config = load_config([])
    assert (config.choices.model, config.choices.data, config.choices.trainer) == ("babygpt", "pydocs", "sgd")
    assert config.run_dir == "checkpoints/babygpt-pydocs"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.steps", "7", 7),
        ("optimizer.learning_rate", "1e-3", 1e-3),
        ("optimizer.learning_rate", "1", 1.0),
        ("optimizer.clip_norm", "", None),
        ("model.head_bias", "False", False),
        ("model.vocab_size", "none", None),
        ("model.vocab_size", "100", 100),
        ("train.eval_tokens", "", None),
        # A word is a text, whatever it means elsewhere; only an empty text is none.
        ("data.path", "", None),
        ("data.path", "none", "none"),
        ("data.path", "null", "null"),
        ("data.path", "~", "~"),
        ("data.path", "my texts/café ${x}.v2.txt", "my texts/café ${x}.v2.txt"),
        ("train.grow_from", "none", "none"),
        ("run_dir", "none", "none"),
        ("run_dir", "", "checkpoints/babygpt-pydocs"),
    ],
)
def test_an_option_is_read_by_its_type(key, text, value):
    read = value_of(key, f"{key}={text}")
    assert (read, type(read)) == (value, type(value))


def test_the_last_of_a_key_wins():
    assert value_of("train.seed", "train.seed=1", "train.seed=2") == 2


def test_groups_bring_their_options():
    config = load_config(["model=bigram", "model.smoothing=0", "data=synthetic", "data.states=3"])
    assert config.model == BigramConfig(smoothing=0.0)
    assert config.data == SyntheticConfig(states=3)
    assert config.run_dir == "checkpoints/bigram-synthetic"


WRONG = [
    (["model=babygtp"], "unknown model 'babygtp'; did you mean babygpt?"),
    (["model=babygpt-v10"], "unknown model 'babygpt-v10'; did you mean babygpt-v10-dropout?"),
    (
        ["model=xyz"],
        r"'xyz'; choose from babygpt, babygpt-v2-position, .* and others \(babyjax train --help lists all\)",
    ),
    (["data="], "unknown data ''; choose from pydocs, shakespeare, synthetic"),
    (["model.n_embdd=3"], "unknown option 'model.n_embdd'; did you mean model.n_embd?"),
    (["n_embd=3"], "unknown option 'n_embd'; did you mean model.n_embd?"),
    (["traner.steps=3"], "unknown option 'traner.steps'; did you mean train.steps?"),
    (["model=bigram", "model.n_embd=3"], "model.n_embd= is for model=babygpt, not for model=bigram"),
    (["optimizer.momentum=0"], "optimizer.momentum= is for optimizer=muon or optimizer=sgd, not for optimizer=adamw"),
    (["trainer.smoothng=0"], "unknown option 'trainer.smoothng'; did you mean trainer.smoothing?"),
    (
        ["qwertyuiop=3"],
        "unknown option 'qwertyuiop'; choose from model, data, trainer, optimizer, distributed, log, run_dir",
    ),
    (["model=ngram", "model.qwertyuiop=3"], "unknown option 'model.qwertyuiop'; choose from .*model.discounts"),
    (["data.states=3"], "data.states= is for data=synthetic, not for data=pydocs"),
    (["model.name=bigram"], "unknown option 'model.name'"),
    (["choices.model=bigram"], "unknown option 'choices.model'; did you mean model?"),
    (["optimizer.final_learning_rate=0.1"], "unknown option 'optimizer.final_learning_rate'"),
    (["model.start=gpt2"], "unknown option 'model.start'"),
    (["--steps", "3"], "'--steps' is not an option; options are written key=value"),
    (["train.steps"], "'train.steps' is not an option"),
    (["=3"], "'=3' is not an option"),
    (["train.steps=many"], "train.steps=many is not an integer"),
    (["train.steps=1.5"], "train.steps=1.5 is not an integer"),
    (["train.steps="], "train.steps= is not an integer"),
    (["optimizer.learning_rate=fast"], "optimizer.learning_rate=fast is not a number"),
    (["model.head_bias=perhaps"], "model.head_bias=perhaps is not true or false"),
    (["train.steps=0"], r"train.steps=0 is out of range; it must lie in \[1, 2e9\]"),
    (["train.batch_size=-1"], "train.batch_size=-1 is out of range"),
    (["train.seed=99999999999999999999"], "train.seed=99999999999999999999 is out of range"),
    (["train.steps=" + "1" * 400], r"train.steps=1{60}\.\.\. is out of range"),
    (["train.steps=" + "1" * 5000], r"train.steps=1{60}\.\.\. is not an integer"),
    (["optimizer.learning_rate=" + "1" * 400], "optimizer.learning_rate=inf is out of range"),
    (["model.n_embd=-1"], "model.n_embd=-1 is out of range"),
    (["model=bigram", "model.smoothing=-0.1"], "model.smoothing=-0.1 is out of range"),
    (["optimizer.learning_rate=nan"], "optimizer.learning_rate=nan is out of range"),
    (["optimizer.weight_decay=inf"], "optimizer.weight_decay=inf is out of range"),
    (["optimizer.beta1=1"], r"optimizer.beta1=1.0 is out of range; it must lie in \[0, 1\)"),
    (["optimizer.eps=0"], "optimizer.eps=0.0 is out of range"),
    (["optimizer.eps=1e-300"], "optimizer.eps=1e-300 is out of range"),
    (["optimizer.final_fraction=1.1"], r"optimizer.final_fraction=1.1 is out of range; it must lie in \[0, 1\]"),
    (["model.n_layer=1", "model.dropout=1"], "model.dropout=1.0 is out of range"),
    (["model.n_layer=1", "model.activation=swish"], "unknown value of model.activation: 'swish'"),
    (["optimizer.schedule=cosin"], "unknown value of optimizer.schedule: 'cosin'; did you mean cosine?"),
    (["model.vocab_size=few"], "model.vocab_size=few is not an integer"),
    (["a" * 10**6], r"'a{60}\.\.\.' is not an option"),
    (["a" * 10**6 + "=1"], r"unknown option 'a{60}\.\.\.'"),
    (["model=" + "a" * 10**6], r"unknown model 'a{60}\.\.\.'"),
    # options that contradict each other
    (["model.dropout=0.1"], "model.dropout= is for models with blocks; model=babygpt has none"),
    (["model=babygpt-v3-attention", "model.activation=silu"], "activation= is for models with a feed-forward; model=b"),
    (["model=babygpt-v3-attention", "model.gated=true"], "model.gated= is for models with a feed-forward"),
    (["model=babygpt-v5-feedforward", "model.rotary_base=5"], "model.rotary_base= is for model.position=rotary"),
    (["model=babygpt-v5-feedforward", "model.norm_eps=0.1"], "model.norm_eps= is for models with norms"),
    (["model=ngram", "model.arpa=x", "model.order=3"], "model.order= is for counting; the n-grams of model.arpa="),
    (["model=ngram", "model.arpa=x", "model.discounts=fitted"], "model.discounts= is for counting"),
    (["config=a.yaml", "config=b.yaml"], "config= is given twice"),
    (["model=bigram", "trainer=counts"], "model=bigram is trained by trainer=counting"),
    (["model=bigram", "trainer=sgd"], "model=bigram is trained by trainer=counting"),
    (["trainer=counting"], "model=babygpt is trained by trainer=sgd or trainer=counts, not by trainer=counting"),
    (["model=ngram", "trainer=mixing"], "model=ngram is trained by trainer=counting, not by trainer=mixing"),
    (["model=babygpt-v2-position", "trainer=counts"], "trainer=counts is for v1 in float32"),
    (["model.dtype=bfloat16", "trainer=counts"], "trainer=counts is for v1 in float32"),
    (["model=bigram", "train.grow_from=x"], "train.grow_from= is for trainer=sgd, not trainer=counting"),
    (["trainer=counts", "train.grow_from=x"], "train.grow_from= is for trainer=sgd, not trainer=counts"),
    (["trainer=counts", "optimizer=lion"], "optimizer= is for trainer=sgd; trainer=counts has no optimizer"),
    (["model=bigram", "optimizer.learning_rate=1"], "optimizer.learning_rate= is for trainer=sgd"),
    (["data=synthetic", "data.path=x"], "data=synthetic and data.path= cannot both be given"),
]


@pytest.mark.parametrize(("arguments", "complaint"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_option_gets_one_sentence(arguments, complaint):
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_config(arguments)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        "model: gpt-tiny\nmodel.n_head: 2\ntrain.steps: 7\noptimizer.clip_norm:\n",
        "model: gpt-tiny\ntrain:\n  steps: 7\noptimizer: {clip_norm: ''}\nmodel.n_head: '2'\n",
        "\ufeffmodel: gpt-tiny\r\ntrain.steps: 7 # few\r\noptimizer.clip_norm: none\r\nmodel.n_head: 2",
    ],
)
def test_options_are_read_from_a_file_nested_or_dotted(tmp_path, text):
    (tmp_path / "my.yaml").write_text(text, encoding="utf-8", newline="")
    typed = ["model=gpt-tiny", "model.n_head=2", "train.steps=7", "optimizer.clip_norm="]
    assert load_config([f"config={tmp_path / 'my.yaml'}"]) == load_config(typed)


def test_the_command_line_has_the_last_word_over_a_file(tmp_path):
    (tmp_path / "my.yaml").write_text("train.seed: 1\ntrain.steps: 7\nrun_dir: here\n")
    train = load_config(["train.seed=2", f"config={tmp_path / 'my.yaml'}"]).train
    assert (train.seed, train.steps) == (2, 7)
    assert load_config([f"config={tmp_path / 'my.yaml'}", "config="]) == load_config([])
    assert load_config([f"config={tmp_path / 'my.yaml'}"]).run_dir == "here"


@pytest.mark.parametrize(
    ("text", "value"), [("", None), ("null", None), ("~", None), ("none", "none"), ("'null'", "null"), ('"~"', "~")]
)
def test_null_in_a_file_is_an_empty_value_and_a_word_in_quotes_is_a_text(tmp_path, text, value):
    (tmp_path / "my.yaml").write_text(f"data.path: {text}\n")
    assert load_config([f"config={tmp_path / 'my.yaml'}"]).data.path == value


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no /dev/fd")
def test_a_file_may_be_a_pipe():
    read, write = os.pipe()
    os.write(write, b"train.steps: 7\n")
    os.close(write)
    assert load_config([f"config=/dev/fd/{read}"]).train.steps == 7
    os.close(read)


def test_a_file_below_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my.yaml").write_text("train.steps: 7\n")
    assert load_config(["config=~/my.yaml"]).train.steps == 7


BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD_FILES = {
    "list": ("train.steps: [1, 2]\n", "train.steps is a list, not one value"),
    "nested list": ("train:\n  steps:\n  - 1\n", "train.steps is a list, not one value"),
    "list of options": ("- train.steps=1\n", "is not a table of options"),
    "one value": ("5\n", "is not a table of options"),
    "key": ("[a, b]: 5\n", "has a list or table for a key"),
    "alias": ("train.steps: &a 5\ntrain.seed: *a\n", "has an alias"),
    "alias bomb": (BOMB, "has an alias"),
    "20,000 brackets": ("[" * 20_000, "is nested too deeply"),
    "20,000 nested tables": ("a: {" + "a: {" * 15_000, "is nested too deeply"),
    "5 levels": ("{a: {b: {c: {d: {e: 1}}}}}", "is nested too deeply"),
    "400 digits": (f"train.steps: {'1' * 400}\n", "is out of range"),
    "5,000 digits": (f"train.steps: {'1' * 5000}\n", "is not an integer"),
    "400 digits of a fraction": (f"optimizer.learning_rate: {'1' * 400}\n", "is out of range"),
    "long text": (f"model: {'a' * 50_000}\n", "unknown model 'aaaa"),
    "too large": ("#" * 70_000, "is larger than 65,536 bytes"),
    "binary": (b"\xff\xfe\0", "is not a file of options"),
    "NUL": (b"train.steps: \0", "is not a file of options"),
    "not YAML": ("train.steps: 'a\n", "is not a file of options"),
    "two documents": ("train.steps: 5\n---\ntrain.steps: 6\n", "is not a file of options"),
    "Python object": ("train.steps: !!python/object/apply:os.getpid []\n", "is a list, not one value"),
    "twice": ("train.steps: 5\ntrain.steps: 6\n", "has the option train.steps twice"),
    "dotted and nested": ("train.steps: 5\ntrain:\n  steps: 6\n", "has the option train.steps twice"),
    "another file": ("config: other.yaml\n", "has the option config, which belongs on the command line"),
    "unknown option": ("train:\n  step: 5\n", "unknown option 'train.step'; did you mean train.steps?"),
    "contradiction": ("model: bigram\ntrainer: counts\n", "model=bigram is trained by trainer=counting"),
}


@pytest.mark.parametrize(("text", "complaint"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_gets_one_sentence(tmp_path, text, complaint):
    path = tmp_path / "my.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load_config([f"config={path}"])
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("path", "complaint"),
    [("no.yaml", "No such file"), (".", "Is a directory"), ("a\0b", "null byte"), ("a" * 9999, "File name too long")],
)
def test_a_file_that_cannot_be_read_gets_one_sentence(tmp_path, monkeypatch, path, complaint):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_config([f"config={path}"])
    assert len(str(caught.value)) < 200


CHANGED = [
    [f"{group}={name}", *{"counting": ["model=ngram"], "mixing": ["model=mixture"]}.get(name, [])]
    for group in PRESETS
    for name in PRESETS[group]
] + [
    ["model=gpt-tiny", "optimizer=lion", "train.batch_size=32", "train.steps=9", "model.dropout=0.1"],
    ["model=gpt2", "model.vocab_size=", "optimizer.clip_norm=", "model.head_bias=true", "run_dir=elsewhere"],
    ["model=bigram", "data=synthetic", "data.states=3", "model.counting=windows", "overwrite=true"],
    ["trainer=counts", "trainer.smoothing=0.5", "train.eval_interval=500", "checkpoint.seconds="],
    ["data.path=none", "train.grow_from=null", "log=tensorboard", "optimizer.eps=1e-30"],
    ["model.n_embd=0", "train.eval_tokens="],
]


@pytest.mark.parametrize("arguments", CHANGED, ids="-".join)
def test_the_fewest_options_give_the_config_again(tmp_path, arguments):
    config = load_config(arguments)
    kept = arguments_of(config)
    assert set(kept) <= {"model", *(argument.partition("=")[0] for argument in arguments)}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(kept, sort_keys=False, allow_unicode=True), encoding="utf-8")
    again = load_config([f"config={tmp_path / 'config.yaml'}", f"run_dir={config.run_dir}"])
    assert again.replace(overwrite=config.overwrite) == config
    # A manifest has all of it, as JSON.
    manifest = json.loads(json.dumps(config_to_dict(config)))
    assert config_from_dict(manifest).replace(run_dir=config.run_dir, overwrite=config.overwrite) == config


@given(st.text(st.characters(exclude_characters="\0"), min_size=1))
def test_any_text_survives_being_kept(tmp_path_factory, text):
    config = load_config([f"data.path={text}"])
    assert config.data.path == text
    path = tmp_path_factory.mktemp("kept") / "config.yaml"
    path.write_text(yaml.safe_dump(arguments_of(config), allow_unicode=True), encoding="utf-8", newline="")
    assert load_config([f"config={path}"]).data == config.data


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: None,
        lambda kept: [],
        lambda kept: {**kept, "extra": 1},
        lambda kept: {**kept, "model": 5},
        lambda kept: {**kept, "model": {**kept["model"], "n_embed": 32}},
        lambda kept: {**kept, "model": {**kept["model"], "n_embd": "wide"}},
        lambda kept: {**kept, "model": {**kept["model"], "n_embd": 1.5}},
        lambda kept: {**kept, "model": {**kept["model"], "n_embd": -1}},
        lambda kept: {**kept, "choices": {**kept["choices"], "model": "rnn-5"}},
        lambda kept: {**kept, "choices": {**kept["choices"], "trainer": "counting"}},
        lambda kept: {key: value for key, value in kept.items() if key != "choices"},
        lambda kept: {key: value for key, value in kept.items() if key != "model"},
    ],
)
def test_a_damaged_config_is_refused(damage):
    with pytest.raises(ConfigError):
        config_from_dict(damage(config_to_dict(load_config([]))))


def test_differences_name_what_keeps_one_run_from_continuing_another():
    ours = load_config(["model.n_embd=64", "optimizer.beta1=0.8", "train.steps=9", "data.path=here.txt", "run_dir=b"])
    theirs = load_config(["train.steps=3", "data.path=there.txt", "run_dir=a", "model.unroll=2", "log=wandb"])
    assert differences(ours, theirs) == ["model.n_embd is 32 there, 64 here", "optimizer.beta1 is 0.9 there, 0.8 here"]
    assert differences(load_config(["model=bigram"]), theirs)[0] == "model is babygpt there, bigram here"
    assert differences(theirs, theirs) == []


def test_a_schedule_binds_the_steps_of_a_run():
    """Going on after the end of a cosine would be another run; a constant learning rate has no end."""
    ours, theirs = (load_config(["model=gpt-tiny", f"train.steps={steps}"]) for steps in (9, 5))
    assert differences(ours, theirs) == ["train.steps is 5 there, 9 here"]
    ours, theirs = (load_config(["model=babygpt-v9-layernorm", f"train.steps={steps}"]) for steps in (9, 5))
    assert differences(ours, theirs) == []
    counted = ("model=bigram", "model.counting=windows")
    ours, theirs = (load_config([*counted, f"train.steps={steps}"]) for steps in (9, 5))
    assert differences(ours, theirs) == ["train.steps is 5 there, 9 here"]
    assert [steps_are_bound(load_config([f"model={name}"])) for name in ("gpt-tiny", "babygpt", "bigram")] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("path", ["./par", "par/", "../here/par", "{}/par", "~/par", "par"])
def test_a_run_to_grow_from_is_the_same_however_its_path_is_written(tmp_path, monkeypatch, path):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    ours = load_config([f"train.grow_from={path.format(Path.cwd())}"])
    assert differences(ours, load_config(["train.grow_from=par"])) == []
    assert differences(ours, load_config(["train.grow_from=other"])) != []
    assert differences(ours, load_config([])) != []


def test_a_corpus_is_named_after_its_file():
    assert corpus_name(load_config(["data.path=a/my text.txt"])) == "my text"
    assert corpus_name(load_config(["data=synthetic"])) == "synthetic"


@pytest.mark.parametrize("kind", [EvaluateConfig, SampleConfig])
def test_the_other_commands_read_options_the_same_way(kind):
    assert read_options(kind, ["run_dir=none"]).run_dir == "none"
    assert read_options(kind, ["run_dir="]).run_dir is None
    with pytest.raises(ConfigError, match="unknown option 'run_dri'; did you mean run_dir"):
        read_options(kind, ["run_dri=x"])
    with pytest.raises(ConfigError, match="'--help-me' is not an option"):
        read_options(kind, ["--help-me"])


def test_a_model_config_can_be_read_from_a_preset_and_options():
    model = load_config(["model=babygpt-v9-layernorm", "model.n_layer=2"]).model
    assert isinstance(model, BabyGPTConfig)
    assert (model.n_layer, model.norm) == (2, "layer")

from dataclasses import fields

import pytest
import yaml

from babyjax.config import (
    CONF,
    choices_of,
    differences,
    load_config,
    load_saved_config,
    options_of,
    save_config,
)
from babyjax.errors import ConfigError, RunError
from babyjax.schema import GROUPS, BigramConfig, SyntheticConfig


def test_defaults_are_the_seeds():
    config = load_config([])
    assert (config.model.name, config.model.n_embd, config.model.bias, config.model.block_size) == (
        "babygpt",
        32,
        True,
        8,
    )
    assert (config.train.batch_size, config.train.steps) == (32, 5000)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.beta1, optimizer.beta2) == (1e-2, 0.9, 0.999)
    assert (optimizer.eps, optimizer.weight_decay) == (1e-8, 0.01)
    assert config.run_dir == "checkpoints/babygpt-pydocs"


def test_every_group_file_fits_its_schema_and_every_schema_has_a_file():
    for group, schemas in GROUPS.items():
        assert choices_of(group) == sorted(schemas)
        for name in schemas:
            assert set(yaml.safe_load((CONF / group / f"{name}.yaml").read_text())) == {
                item.name for item in fields(schemas[name])
            }
            assert getattr(load_config([f"{group}={name}"]), group).name == name


def test_options_are_read_by_their_type():
    config = load_config(
        [
            "train.steps=7",
            "optimizer.learning_rate=1e-3",
            "model.bias=False",
            "data.path=null",
            "train.seed=1",
            "train.seed=2",
        ]
    )
    assert (config.train.steps, config.optimizer.learning_rate, config.model.bias) == (7, 1e-3, False)
    assert (config.data.path, config.train.seed) == (None, 2)


def test_groups_bring_their_options():
    config = load_config(["model=bigram", "model.smoothing=0", "data=synthetic", "data.states=3"])
    assert config.model == BigramConfig("bigram", 8, 0.0, "corpus")
    assert isinstance(config.data, SyntheticConfig)
    assert config.run_dir == "checkpoints/bigram-synthetic"


@pytest.mark.parametrize("path", ["my texts/café ${x}.v2.txt", "synthetic", "a=b, {c}: 'd' \"e\" \\f#g"])
def test_text_is_taken_as_it_is_and_survives_saving(tmp_path, path):
    config = load_config([f"data.path={path}", f"run_dir={path}"])
    assert (config.data.path, config.run_dir) == (path, path)
    save_config(config, tmp_path / "config.yaml")
    assert load_saved_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["model=babygtp"], "unknown model 'babygtp'; did you mean babygpt?"),
        (["model=xyz"], "unknown model 'xyz'; there are babygpt, bigram"),
        (["data="], "unknown data ''; there are pydocs, shakespeare, synthetic"),
        (["model.n_embdd=3"], "unknown option 'model.n_embdd'; did you mean model.n_embd?"),
        (["n_embd=3"], "unknown option 'n_embd'; did you mean model.n_embd?"),
        (["traner.steps=3"], "unknown option 'traner.steps'; did you mean train.steps?"),
        (["model=bigram", "model.n_embd=3"], "unknown option 'model.n_embd'; there are .*model.smoothing"),
        (["data.states=3"], "unknown option 'data.states'"),
        (["model.name=bigram"], "unknown option 'model.name'"),
        (["--steps", "3"], "'--steps' is not an option; options are written key=value"),
        (["train.steps"], "'train.steps' is not an option"),
        (["=3"], "'=3' is not an option"),
        (["train.steps=many"], "train.steps=many is not an integer"),
        (["train.steps=1.5"], "train.steps=1.5 is not an integer"),
        (["train.steps="], "train.steps= is not an integer"),
        (["optimizer.learning_rate=fast"], "optimizer.learning_rate=fast is not a number"),
        (["model.bias=perhaps"], "model.bias=perhaps is not true or false"),
        (["data.tokenizer=bpe"], "unknown value of data.tokenizer: 'bpe'; there are byte, char"),
        (["train.steps=0"], r"train.steps=0 is out of range; it must lie in \[1, 2e9\]"),
        (["train.batch_size=-1"], "train.batch_size=-1 is out of range"),
        (["train.seed=99999999999999999999"], "train.seed=99999999999999999999 is out of range"),
        (["model.n_embd=-1"], "model.n_embd=-1 is out of range"),
        (["model=bigram", "model.smoothing=-0.1"], "model.smoothing=-0.1 is out of range"),
        (["optimizer.learning_rate=nan"], "optimizer.learning_rate=nan is out of range"),
        (["optimizer.weight_decay=inf"], "optimizer.weight_decay=inf is out of range"),
        (["optimizer.beta1=1"], r"optimizer.beta1=1.0 is out of range; it must lie in \[0, 1\)"),
        (["optimizer.eps=0"], "optimizer.eps=0.0 is out of range"),
    ],
)
def test_a_wrong_option_gets_one_sentence(arguments, complaint):
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_config(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: "[]",
        lambda text: "a: [",
        lambda text: text.replace("n_embd", "n_embed"),
        lambda text: text.replace("n_embd: 32", "n_embd: wide"),
        lambda text: text.replace("n_embd: 32", "n_embd: 1.5"),
        lambda text: text.replace("n_embd: 32", "n_embd: -1"),
        lambda text: text.replace("name: babygpt", "name: gpt-5"),
        lambda text: text.replace("overwrite: false\n", ""),
        lambda text: text + "extra: 1\n",
    ],
)
def test_a_damaged_config_file_is_refused(tmp_path, damage):
    path = tmp_path / "config.yaml"
    save_config(load_config([]), path)
    assert load_saved_config(path) == load_config([])
    path.write_text(damage(path.read_text()))
    with pytest.raises(RunError, match=r"config\.yaml is not the configuration of a run"):
        load_saved_config(path)


def test_differences_name_what_keeps_one_run_from_continuing_another():
    ours = load_config(["model.n_embd=64", "optimizer.beta1=0.8", "train.steps=9", "data.path=here.txt", "run_dir=b"])
    theirs = load_config(["train.steps=3", "data.path=there.txt", "run_dir=a"])
    assert differences(ours, theirs) == ["model.n_embd is 32 there, 64 here", "optimizer.beta1 is 0.9 there, 0.8 here"]
    assert differences(load_config(["model=bigram"]), theirs) == ["model is babygpt there, bigram here"]
    assert differences(theirs, theirs) == []


def test_every_option_explains_itself():
    for group, schemas in GROUPS.items():
        for name in schemas:
            for key, option in options_of(load_config([f"{group}={name}"])).items():
                assert option.help, key
                if option.type in (int, float):
                    assert option.interval, key

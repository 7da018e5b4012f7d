from dataclasses import MISSING, asdict, fields, replace

import pytest
import yaml

from babyjax.config import (
    choices_of,
    differences,
    load_config,
    load_saved_config,
    options_of,
    save_config,
)
from babyjax.errors import ConfigError, RunError
from babyjax.schema import GROUPS, BigramConfig, LionConfig, SyntheticConfig


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


def test_every_choice_is_of_a_family_and_every_family_has_a_choice():
    for group, schemas in GROUPS.items():
        choices = choices_of(group)
        assert {name.partition("-")[0] for name in choices} == set(schemas)
        for name in choices:
            chosen = getattr(load_config([f"{group}={name}"]), group)
            assert (chosen.name, type(chosen)) == (name, schemas[name.partition("-")[0]])


def test_a_rung_adds_its_idea_to_the_rung_below():
    """The ladder as it was published: what each of v2 to v10 says of the model that the one before does not."""
    added = {
        "babygpt-v2-position": {"position": True},
        "babygpt-v3-attention": {"n_layer": 1, "n_head": 1},
        "babygpt-v4-multihead": {"n_head": 4},
        "babygpt-v5-feedforward": {"feed_forward": 1},
        "babygpt-v6-blocks": {"n_layer": 3, "unroll": 3},
        "babygpt-v7-residual": {"residual": True},
        "babygpt-v8-projection": {"projection": True, "feed_forward": 4},
        "babygpt-v9-layernorm": {"norm": True},
        "babygpt-v10-dropout": {"dropout": 0.2},
        "babygpt-v11": {"block_size": 256, "n_embd": 384, "n_head": 6, "n_layer": 6, "unroll": 6},
        "babygpt-v12": {},
    }
    assert ["babygpt", *added, "bigram"] == [name for name in choices_of("model") if name.startswith("b")]
    expected = load_config(["model=babygpt"])
    for name, ideas in added.items():
        expected = replace(expected, model=replace(expected.model, name=name, **ideas), run_dir="")
        if name == "babygpt-v11":
            expected.train.batch_size = 64
            expected.optimizer = load_config(["optimizer=adamw-3e-4"]).optimizer
        assert replace(load_config([f"model={name}"]), run_dir="") == expected


def test_a_preset_brings_its_recipe_and_the_command_line_has_the_last_word():
    tiny = load_config(["model=gpt-tiny"])
    assert (tiny.model.block_size, tiny.model.n_embd, tiny.model.n_layer, tiny.model.n_head) == (64, 128, 4, 4)
    assert (tiny.train.batch_size, tiny.train.steps) == (12, 2000)
    assert (tiny.optimizer.schedule, tiny.optimizer.learning_rate) == ("cosine", 2e-3)
    other = load_config(["model=gpt-tiny", "optimizer=lion", "train.batch_size=3", "model.n_head=2"])
    assert isinstance(other.optimizer, LionConfig)
    assert (other.train.batch_size, other.model.n_head, other.model.n_embd) == (3, 2, 128)
    gpt2 = load_config(["model=gpt2-xl"]).model
    assert (gpt2.n_embd, gpt2.n_layer, gpt2.n_head, gpt2.block_size, gpt2.vocab_size) == (1600, 48, 25, 1024, 50257)


def test_a_run_kept_before_an_option_was_there_is_what_it_was(tmp_path):
    """Such an option has a default in the schema, and its value in conf/ is that of the runs before, but one."""
    config = load_config([])
    kept = asdict(config)
    for part in ("model", "optimizer", "train"):
        for item in fields(getattr(config, part)):
            if item.default is not MISSING:
                del kept[part][item.name]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(kept))
    loaded = load_saved_config(tmp_path / "config.yaml")
    assert loaded.train.eval_tokens is None
    assert differences(config, loaded) == []
    loaded.train.eval_tokens = config.train.eval_tokens
    assert loaded == config
    del kept["model"]["n_embd"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(kept))
    with pytest.raises(RunError, match="is not the configuration of a run"):
        load_saved_config(tmp_path / "config.yaml")


def test_a_schedule_binds_the_steps_of_a_run():
    """Going on after the end of a cosine would be another run; a constant step size has no end."""
    ours, theirs = (load_config(["model=gpt-tiny", f"train.steps={steps}"]) for steps in (9, 5))
    assert differences(ours, theirs) == ["train.steps is 5 there, 9 here"]
    ours, theirs = (load_config(["model=babygpt-v9-layernorm", f"train.steps={steps}"]) for steps in (9, 5))
    assert differences(ours, theirs) == []


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
        (["model=xyz"], "unknown model 'xyz'; there are babygpt, babygpt-v2-position, .*, gpt2-xl"),
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
        (["data.tokenizer=bpe"], "unknown value of data.tokenizer: 'bpe'; there are char, byte"),
        (["train.steps=0"], r"train.steps=0 is out of range; it must lie in \[1, 2e9\]"),
        (["train.batch_size=-1"], "train.batch_size=-1 is out of range"),
        (["train.seed=99999999999999999999"], "train.seed=99999999999999999999 is out of range"),
        (["model.n_embd=-1"], "model.n_embd=-1 is out of range"),
        (["model=bigram", "model.smoothing=-0.1"], "model.smoothing=-0.1 is out of range"),
        (["optimizer.learning_rate=nan"], "optimizer.learning_rate=nan is out of range"),
        (["optimizer.weight_decay=inf"], "optimizer.weight_decay=inf is out of range"),
        (["optimizer.beta1=1"], r"optimizer.beta1=1.0 is out of range; it must lie in \[0, 1\)"),
        (["optimizer.eps=0"], "optimizer.eps=0.0 is out of range"),
        (["model.dropout=0.1"], "model.dropout= is for models with blocks, and babygpt has none"),
        (["model=babygpt-v10"], "unknown model 'babygpt-v10'; did you mean babygpt-v"),
        (["model.n_layer=1", "model.dropout=1"], "model.dropout=1.0 is out of range"),
        (
            ["model.n_layer=1", "model.activation=swish"],
            "unknown value of model.activation: 'swish'; there are relu, gelu",
        ),
        (["optimizer.schedule=cosin"], "unknown value of optimizer.schedule: 'cosin'; did you mean cosine?"),
        (["model.vocab_size=few"], "model.vocab_size=few is not an integer"),
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
        lambda text: text.replace("name: babygpt", "name: rnn-5"),
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
    for group in GROUPS:
        for name in choices_of(group):
            for key, option in options_of(load_config([f"{group}={name}"])).items():
                assert option.help, key
                if option.type in (int, float):
                    assert option.interval, key

"""The presets: the ladder as it was published, and the recipes that come with a model."""

import pytest

from babyjax.config import BabyGPTConfig, BigramConfig, LionConfig, MixtureConfig, NGramConfig
from babyjax.errors import ConfigError
from babyjax.options import load_config, options_of, presets_of
from babyjax.recipes import PRESETS, expand, presets
from babyjax.schema import Options

# What each of v2 to v10 adds to the rung below, and v11 and v12 to v10.
ADDED = {
    "babygpt-v2-position": {"position": "learned"},
    "babygpt-v3-attention": {"n_layer": 1, "n_head": 1},
    "babygpt-v4-multihead": {"n_head": 4},
    "babygpt-v5-feedforward": {"feed_forward": 1},
    "babygpt-v6-blocks": {"n_layer": 3, "unroll": 3},
    "babygpt-v7-residual": {"residual": True},
    "babygpt-v8-projection": {"projection": True, "feed_forward": 4},
    "babygpt-v9-layernorm": {"norm": "layer"},
    "babygpt-v10-dropout": {"dropout": 0.2},
    "babygpt-v11": {"block_size": 256, "n_embd": 384, "n_head": 6, "n_layer": 6, "unroll": 6},
    "babygpt-v12": {},
}
# What each of v13 to v17 adds, starting from gpt-tiny-2019.
MODERN = {
    "babygpt-v13-rotary": {"position": "rotary"},
    "babygpt-v14-rmsnorm": {"norm": "rms", "qkv_bias": True},
    "babygpt-v15-swiglu": {
        **{"activation": "silu", "gated": True, "feed_forward": 2.75},
        **{"bias": False, "qkv_bias": False, "head_bias": False},
    },
    "babygpt-v16-gqa": {"n_kv_head": 2},
    "babygpt-v17-qknorm": {"qk_norm": True},
}


def test_a_rung_adds_its_idea_to_the_rung_below():
    assert ["babygpt", *ADDED, *MODERN, "bigram"] == [name for name in presets_of("model") if name.startswith("b")]
    expected = load_config(["model=babygpt"])
    for name, ideas in ADDED.items():
        expected = expected.replace(model=expected.model.replace(**ideas))
        if name == "babygpt-v11":
            optimizer = load_config(["optimizer=adamw-3e-4"]).optimizer
            expected = expected.replace(train=expected.train.replace(batch_size=64), optimizer=optimizer)
        found = load_config([f"model={name}"])
        assert found.replace(choices=expected.choices, run_dir=expected.run_dir) == expected
        assert presets[name] == expected.model
    expected = load_config(["model=gpt-tiny-2019"])
    for name, ideas in MODERN.items():
        expected = expected.replace(model=expected.model.replace(**ideas))
        found = load_config([f"model={name}"])
        assert found.replace(choices=expected.choices, run_dir=expected.run_dir) == expected
    assert presets["llama-tiny"] == presets["babygpt-v15-swiglu"]
    assert presets["qwen-tiny"] == presets["babygpt-v17-qknorm"].replace(norm_eps=1e-6)


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in PRESETS for name in PRESETS[group]])
def test_every_preset_can_be_chosen_and_sets_options_that_exist(group, name):
    model = {"counting": ["model=bigram"], "mixing": ["model=mixture"]}.get(name, [])
    config = load_config([f"{group}={name}", *model])
    assert getattr(config.choices, group) == name
    kind, values = expand(group, name)
    assert issubclass(kind, Options)
    assert isinstance(getattr(config, group), kind)
    chosen = {key: value for key, value in values.items() if key in PRESETS}
    assert {key: getattr(config.choices, key) for key in chosen} == chosen
    found = {key: value for key, value, _ in options_of(config)}
    assert {key: found[key] for key in values if key not in PRESETS} == {
        key: value for key, value in values.items() if key not in PRESETS
    }


def test_a_preset_brings_its_recipe_and_the_command_line_has_the_last_word():
    tiny = load_config(["model=gpt-tiny-2019"])
    assert isinstance(tiny.model, BabyGPTConfig)
    assert (tiny.model.block_size, tiny.model.n_embd, tiny.model.n_layer, tiny.model.n_head) == (64, 128, 4, 4)
    assert (tiny.train.batch_size, tiny.train.steps) == (12, 2000)
    assert (tiny.optimizer.schedule, tiny.optimizer.learning_rate) == ("cosine", 2e-3)
    # The learning rate falls to 1e-4.
    assert tiny.optimizer.final_fraction * tiny.optimizer.learning_rate == pytest.approx(1e-4)
    other = load_config(["model=gpt-tiny-2019", "optimizer=lion", "train.batch_size=3", "model.n_head=2"])
    assert isinstance(other.model, BabyGPTConfig)
    assert isinstance(other.optimizer, LionConfig)
    assert (other.optimizer.learning_rate, other.optimizer.schedule) == (1e-3, "constant")
    assert (other.train.batch_size, other.model.n_head, other.model.n_embd) == (3, 2, 128)
    gpt2 = presets["gpt2-xl"]
    assert (gpt2.n_embd, gpt2.n_layer, gpt2.n_head, gpt2.block_size, gpt2.vocab_size) == (1600, 48, 25, 1024, 50257)


@pytest.mark.parametrize(
    ("model", "trainer", "config"),
    [
        ("babygpt", "sgd", BabyGPTConfig()),
        ("bigram", "counting", BigramConfig()),
        ("ngram", "counting", NGramConfig()),
        ("mixture", "mixing", MixtureConfig()),
    ],
)
def test_the_trainer_of_a_model(model, trainer, config):
    assert load_config([f"model={model}"]).choices.trainer == trainer
    assert presets[model] == config


def test_training_on_counts_is_evaluated_after_every_step():
    config = load_config(["trainer=counts"])
    assert (config.train.eval_interval, config.checkpoint.seconds) == (1, 60)
    assert load_config(["trainer=counts", "train.eval_interval=5"]).train.eval_interval == 5


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigError, match="unknown model 'babygpt-v10'; did you mean babygpt-v10-dropout"):
        presets["babygpt-v10"]

import pytest
from pydantic_core import PydanticUndefined

from babyjax.config import AdamWConfig, BabyGPTConfig, BigramConfig, Config, CountsConfig, SyntheticConfig, TrainConfig
from babyjax.errors import ConfigError
from babyjax.schema import Options, choices_of, interval_of
from babyjax.text import truncated


def test_defaults_are_those_of_the_published_script():
    config = Config()
    assert isinstance(config.model, BabyGPTConfig)
    assert isinstance(config.optimizer, AdamWConfig)
    assert (config.model.n_embd, config.model.head_bias, config.model.block_size) == (32, True, 8)
    assert (config.train.batch_size, config.train.steps) == (32, 5000)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.beta1, optimizer.beta2) == (1e-2, 0.9, 0.999)
    assert (optimizer.eps, optimizer.weight_decay) == (1e-8, 0.01)
    assert config.model.is_v1


@pytest.mark.parametrize(
    ("kind", "options", "complaint"),
    [
        (BabyGPTConfig, {"n_embd": -1}, "model.n_embd=-1 is out of range; it must lie in [0, 2e9]"),
        (BabyGPTConfig, {"n_embd": "32"}, "model.n_embd=32 is invalid: input should be a valid integer"),
        (BabyGPTConfig, {"n_embd": True}, "model.n_embd=true is invalid: input should be a valid integer"),
        (BabyGPTConfig, {"n_embd": 10**400}, "model.n_embd=1000"),
        (BabyGPTConfig, {"n_embd": 2.5}, "model.n_embd=2.5 is invalid"),
        (BabyGPTConfig, {"bias": 1}, "model.bias=1 is invalid: input should be a valid boolean"),
        (BabyGPTConfig, {"n_head": 0}, "model.n_head=0 is out of range; it must lie in [1, 10000]"),
        (BabyGPTConfig, {"dropout": 1.0}, "model.dropout=1.0 is out of range; it must lie in [0, 1)"),
        (BabyGPTConfig, {"dropout": float("nan")}, "model.dropout=nan is out of range"),
        (BabyGPTConfig, {"n_layer": 1, "n_head": 5}, "model.n_head=5 does not divide model.n_embd=32"),
        (
            BabyGPTConfig,
            {"n_layer": 1, "n_head": 4, "n_kv_head": 3},
            "model.n_kv_head=3 does not divide model.n_head=4",
        ),
        (BabyGPTConfig, {"n_layer": 1, "head_size": 8}, "model.head_size=8 needs model.projection=true to return"),
        (BabyGPTConfig, {"n_layer": 1, "feed_forward": 0.01}, "model.feed_forward=0.01 of model.n_embd=32 is no unit"),
        (BabyGPTConfig, {"n_layer": 1, "position": "rotary", "n_head": 32}, "but a head has a width of 1"),
        (BabyGPTConfig, {"position": "rotary"}, "model.position=rotary is for models with blocks"),
        (BabyGPTConfig, {"n_layer": 1, "n_embd": 0}, "model.n_head=1 does not divide model.n_embd=0"),
        (BabyGPTConfig, {"n_layer": 1, "feed_forward": 4}, "model.feed_forward=4 needs model.projection=true"),
        (
            BabyGPTConfig,
            {"activation": "tanh"},
            "unknown value of model.activation: 'tanh'; choose from relu, relu2, gelu, silu",
        ),
        (BabyGPTConfig, {"n_embed": 3}, "unknown option 'model.n_embed'; did you mean model.n_embd?"),
        (BabyGPTConfig, {"start": "gpt2"}, "unknown option 'model.start'"),
        (BigramConfig, {"smoothing": float("inf")}, "model.smoothing=inf is out of range"),
        (SyntheticConfig, {"seed": -1}, "data.seed=-1 is out of range; it must lie in [0, 2e9]"),
        (AdamWConfig, {"eps": 1e-300}, "optimizer.eps=1e-300 is out of range; it must lie in [1e-30, 1e6]"),
        (TrainConfig, {"accumulation": 0}, "train.accumulation=0 is out of range"),
        (TrainConfig, {"accumulation": 5}, "train.accumulation=5 does not divide train.batch_size=32"),
        (CountsConfig, {"choose": "penalty", "penalty": 0.1}, "trainer.choose=penalty and trainer.penalty= cannot"),
        (CountsConfig, {"choose": "smoothing", "smoothing": 0.0}, "trainer.choose=smoothing and trainer.smoothing="),
        (Config, {"model": 5}, "model=5 is invalid: expected a ModelConfig"),
        (Config, {"run_dri": "x"}, "unknown option 'run_dri'; did you mean run_dir?"),
    ],
)
def test_an_invalid_value_gets_one_sentence(kind, options, complaint):
    for make in (lambda: kind(**options), lambda: kind().replace(**options)):
        with pytest.raises(ConfigError) as caught:
            make()
        assert complaint in str(caught.value)
        assert len(str(caught.value)) < 200
        assert "\n" not in str(caught.value)


def test_a_config_is_a_value():
    """A model keeps its config as static data, so equal configs must be equal keys."""
    one, other = BabyGPTConfig(n_embd=4), BabyGPTConfig().replace(n_embd=4)
    assert one == other
    assert hash(one) == hash(other)
    assert one != BabyGPTConfig()
    with pytest.raises(ValueError, match="frozen"):
        one.n_embd = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "v1"),
    [
        ({}, True),
        ({"n_embd": 0}, True),
        ({"head_bias": False, "block_size": 3, "n_head": 4, "dropout": 0.5}, True),
        ({"position": "learned"}, False),
        ({"n_layer": 1}, False),
        ({"norm": "rms"}, False),
        ({"logit_cap": 9.0}, False),
        ({"tied": True}, False),
        ({"vocab_size": 99}, False),
        ({"dtype": "bfloat16"}, False),
    ],
)
def test_v1_is_an_embedding_and_a_head_and_nothing_else(change, v1):
    assert BabyGPTConfig(**change).is_v1 == v1


def every_kind(kind=Options):
    for below in kind.__subclasses__():
        if below.__module__ == "babyjax.config":
            yield below
            yield from every_kind(below)


@pytest.mark.parametrize("kind", [*every_kind()], ids=lambda kind: kind.__name__)
def test_every_option_has_a_default_a_short_help_and_a_range(kind):
    for name, field in kind.model_fields.items():
        assert field.default is not PydanticUndefined, name
        if kind.__name__ == "Choices" or isinstance(field.default, Options):
            continue
        assert field.description, name
        assert len(field.description.partition(" (")[0].split()) <= 10, name
        assert field.annotation in (bool, str, str | None) or interval_of(field) or choices_of(field), name
        assert set(field.json_schema_extra) == {"free"}


def test_a_long_value_is_shortened():
    assert truncated("a" * 61) == "a" * 60 + "..."
    assert (truncated(True), truncated(None), truncated(0.5)) == ("true", "None", "0.5")

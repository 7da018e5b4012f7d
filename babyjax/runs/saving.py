"""A model in memory becomes a run."""

from pathlib import Path

import numpy as np

from babyjax.config import BigramConfig, Config, NGramConfig
from babyjax.data.corpus import Corpus
from babyjax.data.tokenizer import Tokenizer
from babyjax.errors import ConfigError
from babyjax.models.babygpt import BabyGPT
from babyjax.models.base import LanguageModel
from babyjax.models.bigram import Bigram
from babyjax.models.ngram import NGram
from babyjax.options import load_config
from babyjax.recipes import presets
from babyjax.runs.directory import refuse_run, run_folder
from babyjax.runs.run import Run
from babyjax.training.events import Event, State


def save_run(model: LanguageModel, tokenizer: Tokenizer, path: str | Path, *, overwrite: bool = False) -> Path:
    """Save a model in memory as a run, which can be sampled, evaluated, exported and grown. Returns its folder.

    The run is at step 0 and has no corpus. Its config.yaml has the options of the model and its closest preset.

    Raises: ConfigError if the model is not a network, bigram or n-gram or has no room for the tokenizer's tokens,
    RunError if the folder cannot be used or holds another run, DivergenceError if a number is NaN or infinite.
    """
    if model.vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"a model of {model.vocab_size} tokens has no room for the {tokenizer.vocab_size} of the tokenizer"
        )
    folder = run_folder(path)
    config = _config_of(model, tokenizer.vocab_size)
    config = config.replace(
        data=config.data.replace(tokenizer=str(folder / "tokenizer.json")), run_dir=str(folder), overwrite=overwrite
    )
    refuse_run(folder, overwrite=overwrite)
    with Run.open(config, Corpus("", ""), tokenizer) as run:
        run.begin()
        run.save(Event(0, State(np.int32(0), model, ()), np.empty(0), 0.0), first=True)
        run.wait()
    return folder


def _config_of(model: LanguageModel, vocab_size: int) -> Config:
    """Return the config of a run of this model, with the recipe of the closest preset. Raises: ConfigError."""
    match model:
        case BabyGPT():
            room = None if model.vocab_size == vocab_size else model.vocab_size
            config = model.config.replace(attention="auto", vocab_size=room)
        case Bigram():
            config = BigramConfig(smoothing=model.smoothing)
        case NGram():
            config = NGramConfig(order=model.order)
        case _:
            raise ConfigError(f"a {type(model).__name__} cannot be saved as a run")
    values = config.model_dump()

    def distance(name: str) -> int:
        return sum(value != values[key] for key, value in presets[name].model_dump().items())

    name = min((name for name in presets if type(presets[name]) is type(config)), key=distance)
    return load_config([f"model={name}"]).replace(model=config)

"""`python -m babyjax.sample run_dir=...`: text from a trained model."""

from dataclasses import dataclass

from babyjax.config import options_of, read_options
from babyjax.door import describe_options, prepare_jax, run_door
from babyjax.errors import ConfigError
from babyjax.schema import SEED, SIZE, option


@dataclass
class SampleConfig:
    run_dir: str | None = option("the run to sample from", None)
    step: str = option("checkpoint: newest, best (by validation loss) or a step", "newest")
    prompt: str = option("text to continue", "\n")
    max_new_tokens: int = option("tokens to add", 300, interval=SIZE)
    num_samples: int = option("continuations of the prompt", 1, interval="[1, 1e6]")
    temperature: float = option("below 1 bolder, above 1 wilder, 0 the likeliest", 1.0, interval="[0, 1e6]")
    top_k: int = option("draw among the k likeliest, 0 all", 0, interval=SEED)
    seed: int = option("seed of the draws", 0, interval=SEED)


def help_text(argv: list[str]) -> str:
    return (
        "usage: python -m babyjax.sample run_dir=DIR [key=value ...]\n\n"
        "Continue a prompt with a trained model. The same seed gives the same text.\n\n"
        f"{describe_options(options_of(SampleConfig()).items())}"
    )


def main(argv: list[str]) -> None:
    config = read_options(SampleConfig, argv)
    if not config.run_dir:
        raise ConfigError("run_dir=DIR is missing: say which run to sample from")
    if config.prompt == "":
        raise ConfigError("prompt= is empty; give at least one character, or leave it out")
    prepare_jax()
    import jax
    import numpy as np

    from babyjax.generation.sampling import generate
    from babyjax.training.devices import require_memory
    from babyjax.training.run import load_run

    run = load_run(config.run_dir, config.step)
    known = config.prompt != "\n" or "\n" in run.tokenizer.decode(np.arange(run.tokenizer.vocab_size))
    context = run.tokenizer.encode(config.prompt) if known else np.zeros(1, np.int32)
    require_memory(8 * config.num_samples * config.max_new_tokens, "a text of so many tokens")
    tokens = generate(
        run.model,
        np.tile(context, (config.num_samples, 1)),
        jax.random.key(config.seed),
        config.max_new_tokens,
        config.temperature,
        config.top_k or None,
    )
    samples = [config.prompt.lstrip("\n") + run.tokenizer.decode(row) for row in np.asarray(tokens)]
    print("\n\n---\n\n".join(samples))


if __name__ == "__main__":
    run_door(main, help_text)

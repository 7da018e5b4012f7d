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
    top_p: float | None = option(
        "draw among the fewest likeliest that hold so much probability", None, interval="(0, 1]"
    )
    min_p: float | None = option(
        "draw among those at least so likely as a share of the likeliest", None, interval="[0, 1]"
    )
    stop: str = option("end a text with any of these characters", "")
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

    from babyjax.generation.sampling import ENDED, generate
    from babyjax.training.devices import require_memory
    from babyjax.training.run import load_run

    run = load_run(config.run_dir, config.step)
    known = config.prompt != "\n" or "\n" in run.tokenizer.decode(np.arange(run.tokenizer.vocab_size))
    context = run.tokenizer.encode(config.prompt) if known else np.zeros(1, np.int32)
    stop_tokens = run.tokenizer.encode(config.stop)
    if len(stop_tokens) != len(config.stop):
        raise ConfigError(f"stop={config.stop} has a character of several {run.tokenizer.name}s; only ASCII can stop")
    require_memory(8 * config.num_samples * config.max_new_tokens, "a text of so many tokens")
    if run.model.receptive_field > 1:
        cache = jax.eval_shape(lambda: run.model.empty_cache(config.num_samples))
        require_memory(
            sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache)), "a cache of so many texts"
        )
    tokens = generate(
        run.model,
        np.tile(context, (config.num_samples, 1)),
        jax.random.key(config.seed),
        config.max_new_tokens,
        config.temperature,
        config.top_k or None,
        top_p=config.top_p,
        min_p=config.min_p,
        stop_tokens=stop_tokens.tolist(),
        vocab_size=run.tokenizer.vocab_size,
    )
    samples = [config.prompt.lstrip("\n") + run.tokenizer.decode(row[row != ENDED]) for row in np.asarray(tokens)]
    print("\n\n---\n\n".join(samples))


if __name__ == "__main__":
    run_door(main, help_text)

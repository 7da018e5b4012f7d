"""`babyjax sample run_dir=...`: text from a trained model."""

import babyjax
from babyjax.cli import describe, prepare_jax, print_result, run_command
from babyjax.data.documents import END_OF_TEXT
from babyjax.errors import ConfigError
from babyjax.options import read_options
from babyjax.schema import Options, count, option, size
from babyjax.text import truncated


class SampleConfig(Options):
    run_dir: str | None = option(None, "run to sample from")
    step: str = option("newest", "checkpoint: newest, best (by validation loss) or a step")
    prompt: str | None = option(None, "text to continue (empty: a new document or line)")
    max_new_tokens: int = size(300, "tokens to add")
    num_samples: int = option(1, "continuations of the prompt", ge=1, le=1e6)
    temperature: float = option(1.0, "sampling temperature; 0 is greedy", ge=0, le=1e6)
    top_k: int = count(0, "sample from the k most likely tokens (0: all)")
    top_p: float | None = option(None, "nucleus sampling: keep the smallest set with this probability", gt=0, le=1)
    min_p: float | None = option(None, "keep tokens with this share of the largest probability", ge=0, le=1)
    stop: str = option("", "also end a text at these characters, or this token")
    seed: int = count(0, "seed of the samples")


def help_text(argv: list[str]) -> str:
    """Return the help."""
    return (
        "usage: babyjax sample run_dir=DIR [key=value ...]\n\n"
        "Continue a prompt with a trained model. The same seed gives the same text.\n\n"
        f"{describe(SampleConfig())}"
    )


def main(argv: list[str]) -> None:
    """Print continuations of the prompt that the arguments give."""
    config = read_options(SampleConfig, argv)
    if not config.run_dir:
        raise ConfigError("run_dir=DIR is missing: name the run to sample from")
    prepare_jax()
    with babyjax.Screen(stderr=True).status("sampling"):
        samples = _sample(config, babyjax.load_run(config.run_dir, config.step))
    print_result("\n\n---\n\n".join(samples))


def _sample(config: SampleConfig, run: "babyjax.LoadedRun") -> list[str]:
    import jax
    import numpy as np

    from babyjax.training.devices import bytes_of, require_memory

    end = run.tokenizer.end_of_text
    given, stop = (text.replace("\r\n", "\n").replace("\r", "\n") for text in (config.prompt or "", config.stop))
    start = given or ("\n" if end is None else END_OF_TEXT)
    known = start != "\n" or "\n" in run.tokenizer.decode(np.arange(run.tokenizer.vocab_size))
    prompt = run.tokenizer.encode(start) if known else np.zeros(1, np.int32)
    stop_tokens = run.tokenizer.encode(stop)
    if len(stop_tokens) not in (1, len(stop)):
        raise ConfigError(
            f"stop={truncated(config.stop)} is neither one token nor characters of one token each, of this "
            f"{run.tokenizer.name} tokenizer"
        )
    require_memory(8 * config.num_samples * config.max_new_tokens, "a text of this many tokens")
    cache = jax.eval_shape(lambda: run.model.decoder().init_cache(config.num_samples))
    require_memory(bytes_of(cache), "a cache of this many texts")
    tokens = babyjax.generate(
        run.model,
        np.tile(prompt, (config.num_samples, 1)),
        jax.random.key(config.seed),
        config.max_new_tokens,
        config.temperature,
        config.top_k or None,
        top_p=config.top_p,
        min_p=config.min_p,
        stop_tokens=stop_tokens.tolist() + [end] * (end is not None),
        vocab_size=run.tokenizer.vocab_size,
    )
    rows = [row[row >= 0] for row in np.asarray(tokens)]
    if not known:
        return [run.tokenizer.decode(row) for row in rows]
    # Decoded together: a token may write its space only behind another.
    hidden = len(start) - len(start.lstrip("\n" + END_OF_TEXT))
    texts = [run.tokenizer.decode(np.concatenate([prompt, row]))[hidden:] for row in rows]
    return [text.removesuffix(END_OF_TEXT) for text in texts]


if __name__ == "__main__":
    run_command(main, help_text)

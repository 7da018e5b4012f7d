"""`babyjax evaluate run_dir=...`: losses of a trained model over whole splits."""

import json
from collections.abc import Callable
from typing import Any, Literal

import babyjax
from babyjax.cli import describe, prepare_jax, run_command, show
from babyjax.config import Options, option, size
from babyjax.errors import ConfigError
from babyjax.files import finite_json
from babyjax.options import read_options


class EvaluateConfig(Options):
    run_dir: str | None = option(None, "run to evaluate")
    step: str = option("newest", "checkpoint: newest, best (by validation loss) or a step")
    split: Literal["both", "train", "val"] = option("both", "splits to evaluate")
    stride: int | None = size(None, "tokens between context windows (empty: half a block)")
    format: Literal["text", "json"] = option("text", "a table, or one JSON object")


def help_text(argv: list[str]) -> str:
    """Return the help."""
    return (
        "usage: babyjax evaluate run_dir=DIR [key=value ...]\n\n"
        "Loss of a trained model over whole splits: every token is predicted once, none is sampled.\n"
        "A model with a context reads windows of a block and scores the last `stride` tokens of each.\n"
        "A smaller stride gives every token more context and takes longer.\n\n"
        f"{describe(EvaluateConfig())}"
    )


def evaluate(
    run_dir: str,
    step: str = "newest",
    split: str = "both",
    stride: int | None = None,
    progress: Callable[[str, float], None] = lambda split, share: None,
) -> dict[str, Any]:
    """Evaluate a run and return what `format=json` prints; `bigram_baseline` is in nats per token.

    `least_context` is the smallest context of a token past the first block of a split. `standard_error` compares
    contiguous segments of at least 5,000 tokens; it is None if a split has fewer than two.

    Raises: ConfigError if the stride does not fit the model, RunError if the run cannot be read.
    """
    run = babyjax.load_run(run_dir, step)
    block_size, byte_lengths = run.model.context_length, run.tokenizer.byte_lengths
    tokens = babyjax.split_tokens(run.tokenizer.encode(run.corpus().text))
    pairs = babyjax.PairCounts.from_split(tokens, run.tokenizer.vocab_size)
    names = ["train", "val"] if split == "both" else [split]
    if block_size == 1:
        if stride is not None:
            raise ConfigError(f"stride= is for models with a context; {run.config.choices.model} reads one token")
        losses, stride = babyjax.ExactEvaluator(pairs, byte_lengths)(run.model), 1
    else:
        stride = max(1, block_size // 2) if stride is None else stride
        evaluator = babyjax.ContextEvaluator(tokens, byte_lengths, block_size, stride)
        losses = evaluator(run.model, names, progress)
    return {
        "model": run.config.choices.model,
        "vocab_size": run.tokenizer.vocab_size,
        "step": run.step,
        "block_size": block_size,
        "stride": stride,
        "least_context": block_size - stride + 1,
        "splits": {
            name: {
                "nats_per_token": losses[name].per_token,
                "standard_error": losses[name].standard_error,
                "bits_per_byte": losses[name].bits_per_byte,
                "perplexity": losses[name].perplexity,
                "tokens": losses[name].tokens,
                "bigram_baseline": pairs.baseline(name),
            }
            for name in names
        },
    }


def main(argv: list[str]) -> None:
    """Evaluate the run that the arguments name and print the result."""
    config = read_options(EvaluateConfig, argv)
    if not config.run_dir:
        raise ConfigError("run_dir=DIR is missing: name the run to evaluate")
    prepare_jax()
    with babyjax.Screen(stderr=True).status("reading the run") as update:
        result = evaluate(
            config.run_dir,
            config.step,
            config.split,
            config.stride,
            lambda split, share: update(f"evaluating on {split}: {share:.0%}"),
        )
    show(json.dumps(finite_json(result), allow_nan=False) if config.format == "json" else _table(config, result))


def _table(config: EvaluateConfig, result: dict[str, Any]) -> str:
    lines = [f"{result['model']} after step {result['step']:,}, vocabulary {result['vocab_size']:,}, {config.run_dir}"]
    if result["block_size"] > 1:
        lines.append(f"context of {result['least_context']:,} to {result['block_size']:,} tokens past the first block")
    lines.append("\nsplit  nats/token  std error  bits/byte  perplexity      tokens  bigram baseline")
    for name, split in result["splits"].items():
        error = split["standard_error"]
        lines.append(
            f"{name:5}  {split['nats_per_token']:10.4f}  {'-' if error is None else f'{error:.4f}':>9}  "
            f"{split['bits_per_byte']:9.4f}"
            f"  {split['perplexity']:10.2f}  {split['tokens']:10,}  {split['bigram_baseline']:15.4f}"
        )
    lines.append(
        "\nStandard error: from contiguous segments of at least 5,000 tokens; - where there are fewer than two."
        "\nBigram baseline: on train the entropy of the pairs, a lower bound for models of one previous token;"
        "\non val the loss of the add-one count bigram fitted to train."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main, help_text)

"""`python -m babyjax.evaluate run_dir=...`: losses of a trained model over whole splits."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from babyjax.config import options_of, read_options
from babyjax.door import describe_options, prepare_jax, run_door
from babyjax.errors import ConfigError
from babyjax.schema import SIZE, option


@dataclass
class EvaluateConfig:
    run_dir: str | None = option("the run to evaluate", None)
    step: str = option("checkpoint: newest, best (by validation loss) or a step", "newest")
    split: str = option("what to evaluate on", "both", choices=("both", "train", "val"))
    stride: int | None = option("tokens a window of context moves on by (none: half a block)", None, interval=SIZE)
    format: str = option("a table to read, or one JSON object", "text", choices=("text", "json"))


def help_text(argv: list[str]) -> str:
    return (
        "usage: python -m babyjax.evaluate run_dir=DIR [key=value ...]\n\n"
        "Loss of a trained model over whole splits: every token predicted once, nothing sampled.\n"
        "A model of many tokens reads a window of a block's length, and scores the last `stride` tokens\n"
        "of each: a smaller stride gives every token more context, and takes longer.\n\n"
        f"{describe_options(options_of(EvaluateConfig()).items())}"
    )


def evaluate(
    run_dir: str,
    step: str = "newest",
    split: str = "both",
    stride: int | None = None,
    progress: Callable[[str, float], None] = lambda split, share: None,
) -> dict[str, Any]:
    """The evaluation of a run, as `format=json` prints it. `bigram_floor` is in nats per token.

    `least_context` is the fewest tokens any past the first block of a split is predicted from. The standard error
    takes the tokens, or the windows of a model of many tokens, for independent draws. Raises `ConfigError` for a
    stride that does not fit the model.
    """
    from babyjax.data.batches import split_tokens
    from babyjax.training.evaluation import ContextEvaluator
    from babyjax.training.run import load_run
    from babyjax.training.statistics import ExactEvaluator, PairCounts

    run = load_run(run_dir, step)
    block_size, byte_lengths = run.model.receptive_field, run.tokenizer.byte_lengths
    tokens = split_tokens(run.tokenizer.encode(run.corpus().text))
    pairs = PairCounts.from_split(tokens, run.tokenizer.vocab_size)
    names = ["train", "val"] if split == "both" else [split]
    if block_size == 1:
        if stride is not None:
            raise ConfigError(f"stride= is for a model of many tokens; {run.config.model.name} reads one")
        losses, stride = ExactEvaluator(pairs, byte_lengths)(run.model), 1
    else:
        stride = max(1, block_size // 2) if stride is None else stride
        losses = ContextEvaluator(tokens, byte_lengths, block_size, stride)(run.model, names, progress)
    return {
        "model": run.config.model.name,
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
                "bigram_floor": pairs.bigram_floor(name),
            }
            for name in names
        },
    }


def main(argv: list[str]) -> None:
    config = read_options(EvaluateConfig, argv)
    if not config.run_dir:
        raise ConfigError("run_dir=DIR is missing: say which run to evaluate")
    prepare_jax()
    from rich.console import Console

    with Console(stderr=True).status("reading the run") as status:
        result = evaluate(
            config.run_dir,
            config.step,
            config.split,
            config.stride,
            lambda split, share: status.update(f"evaluating on {split}: {share:.0%}"),
        )
    if config.format == "json":
        from babyjax.training.metrics import finite_json

        print(json.dumps(finite_json(result), allow_nan=False))
        return
    print(f"{result['model']} after step {result['step']:,}, vocabulary {result['vocab_size']:,}, {config.run_dir}")
    if result["block_size"] > 1:
        print(f"every token from {result['least_context']:,} to {result['block_size']:,} before it, where there are")
    print("\nsplit  nats/token  std error  bits/byte  perplexity      tokens  bigram floor")
    for name, split in result["splits"].items():
        print(
            f"{name:5}  {split['nats_per_token']:10.4f}  {split['standard_error']:9.4f}  {split['bits_per_byte']:9.4f}"
            f"  {split['perplexity']:10.2f}  {split['tokens']:10,}  {split['bigram_floor']:12.4f}"
        )
    print(
        "\nThe floor of train is the entropy of its pairs: no model of the previous token goes below."
        "\nThat of val is the loss of the add-one count bigram fitted to train: a mark to beat."
    )


if __name__ == "__main__":
    run_door(main, help_text)

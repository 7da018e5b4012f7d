"""`python -m babyjax.evaluate run_dir=...`: exact losses of a trained model on both splits."""

import json
from dataclasses import dataclass
from typing import Any

from babyjax.config import options_of, read_options
from babyjax.door import describe_options, prepare_jax, run_door
from babyjax.errors import ConfigError
from babyjax.schema import option


@dataclass
class EvaluateConfig:
    run_dir: str | None = option("the run to evaluate", None)
    step: str = option("checkpoint: newest, best (by validation loss) or a step", "newest")
    format: str = option("a table to read, or one JSON object", "text", choices=("text", "json"))


def help_text(argv: list[str]) -> str:
    return (
        "usage: python -m babyjax.evaluate run_dir=DIR [format=json]\n\n"
        "Loss of a trained model over whole splits: every token predicted once, nothing sampled.\n\n"
        f"{describe_options(options_of(EvaluateConfig()).items())}"
    )


def evaluate(run_dir: str, step: str = "newest") -> dict[str, Any]:
    """The evaluation of a run, as `format=json` prints it. `bigram_floor` is in nats per token."""
    from babyjax.data.batches import split_tokens
    from babyjax.training.run import load_run
    from babyjax.training.statistics import ExactEvaluator, PairCounts

    run = load_run(run_dir, step)
    split = split_tokens(run.tokenizer.encode(run.corpus().text))
    pairs = PairCounts.from_split(split, run.tokenizer.vocab_size)
    losses = ExactEvaluator(pairs, run.tokenizer.byte_lengths)(run.model)
    return {
        "model": run.config.model.name,
        "vocab_size": run.tokenizer.vocab_size,
        "step": run.step,
        "splits": {
            name: {
                "nats_per_token": loss.per_token,
                "bits_per_byte": loss.bits_per_byte,
                "perplexity": loss.perplexity,
                "tokens": loss.tokens,
                "bigram_floor": pairs.bigram_floor(name),
            }
            for name, loss in losses.items()
        },
    }


def main(argv: list[str]) -> None:
    config = read_options(EvaluateConfig, argv)
    if not config.run_dir:
        raise ConfigError("run_dir=DIR is missing: say which run to evaluate")
    prepare_jax()
    result = evaluate(config.run_dir, config.step)
    if config.format == "json":
        from babyjax.training.metrics import finite_json

        print(json.dumps(finite_json(result), allow_nan=False))
        return
    print(f"{result['model']} after step {result['step']:,}, vocabulary {result['vocab_size']:,}, {config.run_dir}\n")
    print("split  nats/token  bits/byte  perplexity     tokens  bigram floor")
    for name, split in result["splits"].items():
        print(
            f"{name:5}  {split['nats_per_token']:10.4f}  {split['bits_per_byte']:9.4f}  {split['perplexity']:10.2f}"
            f"  {split['tokens']:9,}  {split['bigram_floor']:12.4f}"
        )
    print(
        "\nThe floor of train is the entropy of its pairs: no model of the previous token goes below."
        "\nThat of val is the loss of the add-one count bigram fitted to train: a mark to beat."
    )


if __name__ == "__main__":
    run_door(main, help_text)

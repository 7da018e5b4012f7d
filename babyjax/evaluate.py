"""`babyjax evaluate run_dir=...`: losses of a trained model over whole splits."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import babyjax
from babyjax.cli import describe, prepare_jax, print_result, run_command
from babyjax.config import MovedConfig
from babyjax.errors import BabyjaxError, ConfigError
from babyjax.files import finite_json, replace_file, user_path
from babyjax.options import read_options
from babyjax.schema import Options, option, size


class EvaluateConfig(Options):
    run_dir: str | None = option(None, "run to evaluate")
    step: str = option("newest", "checkpoint: newest, best (by validation loss) or a step")
    text: str | None = option(None, "evaluate on this text instead of the run's corpus")
    data: MovedConfig = MovedConfig()
    split: Literal["both", "train", "val"] = option("both", "splits to evaluate")
    stride: int | None = size(None, "tokens between context windows (empty: half a block)")
    adaptive: bool = option(False, "also predict each validation token and then count it (models that count)")
    verify: bool = option(False, "check that the validation losses can be trusted")
    per_token: str | None = option(None, "write the loss of every token to this .npz file")
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
    config: EvaluateConfig, run: "babyjax.LoadedRun", progress: Callable[[str, float], None]
) -> dict[str, Any]:
    """Evaluate a run and return what `format=json` prints; `bigram_baseline` and `ngram_baseline` are nats per token.

    `least_context` is the smallest context of a token past the first block of a split. `standard_error` compares
    contiguous segments of at least 5,000 tokens; it is None if a split has fewer than two. With `adaptive` the
    validation split also has what `adaptive_nats` says. `per_token` names a file for the losses of every token but the
    first of each split, and of the n-gram: arrays "val", "val_ngram", "val_adaptive" and so on, in nats. With `verify`
    the result also has a `babyjax.Verification` of the validation split, which `format=json` prints as a dictionary.

    Raises: ConfigError if an option does not fit the model, RunError or DataError if the text cannot be read,
    BabyjaxError if the file cannot be written.
    """
    from babyjax.evaluation.adaptive import require_counting
    from babyjax.evaluation.evaluator import verify_model

    split, stride, text = config.split, config.stride, config.text
    model, byte_lengths, vocab_size = run.model, run.tokenizer.byte_lengths, run.tokenizer.vocab_size
    if stride is not None and model.max_length is None:
        raise ConfigError(f"stride= is for models with a block; {run.config.choices.model} uses all the context it can")
    if config.adaptive and text:
        raise ConfigError("adaptive=true goes on counting from the run's own corpus; leave out text=")
    if config.adaptive and split == "train":
        raise ConfigError("adaptive=true is about the validation split; leave out split=train")
    if config.verify and split == "train":
        raise ConfigError("verify=true is about the validation split; leave out split=train")
    if config.adaptive:
        require_counting(run.config, run.parts)
    path = user_path(config.per_token, BabyjaxError) if config.per_token else None
    if path is not None and not path.parent.is_dir():
        raise BabyjaxError(f"cannot write per_token={path}: there is no folder {path.parent}")
    if text and config.data.path:
        raise ConfigError("text= is another text and data.path= the run's own; give one of them")
    corpus = run.read(text, progress) if text else run.corpus(config.data.path, progress)
    tokens = babyjax.split_tokens(corpus.encode(run.tokenizer))
    pairs = babyjax.PairCounts.of_corpus(corpus, tokens, vocab_size)

    def evaluating(split: str, share: float) -> None:
        progress(f"evaluating on {split}", share)

    names = ["train", "val"] if split == "both" else [split]
    sizes = {name: babyjax.bytes_of(part[1:], byte_lengths) for name, part in tokens._asdict().items()}
    if model.max_length is not None and stride is None:
        stride = max(1, model.max_length // 2)
    if path is None and not config.verify:
        losses = babyjax.make_evaluator(model, pairs, tokens, byte_lengths, stride)(model, names, evaluating)
        arrays = {}
    else:
        arrays = {name: babyjax.token_nats(model, tokens, byte_lengths, name, stride, evaluating) for name in names}
        losses = {name: babyjax.Nats.of_tokens(nats, sizes[name]) for name, nats in arrays.items()}
    ngram = babyjax.ngram_baseline(tokens, vocab_size)
    counted = ngram.counted if ngram.counted < len(tokens.train) else None
    block_size = model.max_length or model.context_length
    splits: dict[str, Any] = {name: {**_shown(losses[name]), "bigram_baseline": pairs.baseline(name)} for name in names}
    if "val" in names:
        splits["val"]["ngram_baseline"], arrays["val_ngram"] = ngram.val, ngram.nats
        if config.adaptive:
            found = babyjax.adaptive_nats(run.config, model, run.parts, tokens, byte_lengths, stride, evaluating)
            splits["val"]["adaptive"] = _shown(babyjax.Nats.of_tokens(found, sizes["val"]))
            arrays["val_adaptive"] = found
    if path is not None:
        _save(path, arrays)
    result = {
        "model": run.config.choices.model,
        "corpus": corpus.name if text else run.manifest.corpus.name,
        "vocab_size": vocab_size,
        "step": run.step,
        "block_size": block_size,
        "stride": stride or 1,
        "least_context": block_size - (stride or 1) + 1,
        "ngram_order": ngram.order,
        "ngram_counted": counted,
        "splits": splits,
    }
    if config.verify:
        result["verification"] = verify_model(
            model,
            tokens,
            byte_lengths,
            corpus.bytes - babyjax.bytes_of(tokens.train, byte_lengths),  # what the training tokens leave
            arrays["val"],
            stride,
            lambda share: evaluating("val again, to verify", share),
        )
    return result


def _save(path: Path, arrays: dict[str, Any]) -> None:
    import numpy as np

    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    try:
        replace_file(path, content.getvalue())
    except OSError as error:
        raise BabyjaxError(f"cannot write per_token={path}: {error.strerror}") from None


def _shown(loss: "babyjax.Nats") -> dict[str, Any]:
    return {
        "nats_per_token": loss.per_token,
        "standard_error": loss.standard_error,
        "bits_per_byte": loss.bits_per_byte,
        "perplexity": loss.perplexity,
        "tokens": loss.tokens,
    }


def main(argv: list[str]) -> None:
    """Evaluate the run that the arguments name and print the result."""
    config = read_options(EvaluateConfig, argv)
    if not config.run_dir:
        raise ConfigError("run_dir=DIR is missing: name the run to evaluate")
    prepare_jax()
    with babyjax.Screen(stderr=True).status("reading the run") as update:
        result = evaluate(config, babyjax.load_run(config.run_dir, config.step), update)
    verification = result.get("verification")
    if config.format == "json":
        shown = {**result, "verification": verification.as_dict()} if verification else result
        print_result(json.dumps(finite_json(shown), allow_nan=False))
    else:
        print_result(_table(config, result) + (f"\n\n{verification}" if verification else ""))
    if verification and not verification.passed:
        raise BabyjaxError(f"the losses cannot be trusted: {', '.join(verification.failed)} failed")


def _table(config: EvaluateConfig, result: dict[str, Any]) -> str:
    about = f"{result['model']} after step {result['step']:,}, vocabulary {result['vocab_size']:,}"
    lines = [f"{about}, {config.run_dir}, on {result['corpus']}"]
    if result["block_size"] > 1:
        least, block = result["least_context"], result["block_size"]
        lines.append(f"context of {f'{least:,} to ' if least < block else ''}{block:,} tokens past the first block")
    order = f"{result['ngram_order']}-gram"
    heads = f"\nsplit  nats/token  std error  bits/byte  perplexity      tokens   bigram  {order:>7}"
    lines.append(heads + "  adaptive nats/token" * config.adaptive)
    for name, split in result["splits"].items():
        error, ngram = split["standard_error"], split.get("ngram_baseline")
        row = (
            f"{name:5}  {split['nats_per_token']:10.4f}  {'-' if error is None else f'{error:.4f}':>9}  "
            f"{split['bits_per_byte']:9.4f}  {split['perplexity']:10.2f}  {split['tokens']:10,}  "
            f"{split['bigram_baseline']:7.4f}  {'-' if ngram is None else f'{ngram:.4f}':>7}"
        )
        if config.adaptive:
            row += f"  {split['adaptive']['nats_per_token']:19.4f}" if "adaptive" in split else f"  {'-':>19}"
        lines.append(row)
    lines.append(
        "\nStandard error: from contiguous segments of at least 5,000 tokens; - where there are fewer than two."
        "\nBigram: on train the entropy of the pairs, a lower bound for models of one previous token; on val the loss"
        "\nof the add-one count bigram fitted to train."
        f"\n{order}: a counted n-gram of the order that is best for the last tenth of train (modified Kneser-Ney)."
    )
    if result["ngram_counted"]:
        lines.append(f"It counted {result['ngram_counted']:,} tokens of train and is scored on the first of val.")
    if config.adaptive:
        lines.append(
            "Adaptive: each token is predicted, then counted. Not to be compared with the static losses beside it."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main, help_text)

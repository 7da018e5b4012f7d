"""`babyjax export run_dir=... format=hf`: a trained model as files for other programs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import yaml

import babyjax
from babyjax.cli import describe, prepare_jax, print_result, run_command
from babyjax.errors import BabyjaxError, ConfigError, RunError
from babyjax.files import new_folder, replace_file, user_path
from babyjax.options import arguments_of, read_options
from babyjax.schema import Options, option

PATHS = ("data.path", "data.tokenizer", "train.grow_from")  # of this machine, and of no use elsewhere


class ExportConfig(Options):
    run_dir: str | None = option(None, "run to export")
    step: str = option("newest", "checkpoint: newest, best (by validation loss) or a step")
    format: Literal["hf", "arpa"] | None = option(None, "files for transformers or for KenLM (empty: by model)")
    out: str | None = option(None, "folder or file to write (empty: hf or model.arpa in the run)")


def help_text(argv: list[str]) -> str:
    """Return the help."""
    return (
        "usage: babyjax export run_dir=DIR [key=value ...]\n\n"
        "Write a trained model in a format of other programs.\n"
        "hf: a folder that AutoModelForCausalLM and AutoTokenizer load, as GPT-2, Llama, Qwen2 or Qwen3.\n"
        "babyjax import reads such a folder.\n"
        "arpa: a file for KenLM, SRILM and others. A token is a word: a character itself, or U+0020 by its code point\n"
        "if it is not visible; a byte is <0x20>. babyjax train model=ngram model.arpa=FILE reads such a file.\n\n"
        f"{describe(ExportConfig())}"
    )


def export(
    run_dir: str,
    step: str = "newest",
    format: str | None = None,
    out: str | None = None,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> Path:
    """Write the model of a run for other programs and return the path. `format` is "hf" or "arpa", None by model.

    `progress(what, share)` is called while a large corpus is read.

    Raises: ConfigError if the format has no such model, RunError if the run cannot be read, BabyjaxError if the files
    cannot be written.
    """
    from babyjax.interop.huggingface import write_huggingface

    run = babyjax.load_run(run_dir, step)
    model = run.model
    format = format or ("arpa" if isinstance(model, babyjax.NGram) else "hf")
    path = user_path(out, BabyjaxError) if out else run.folder / {"hf": "hf", "arpa": "model.arpa"}[format]
    try:
        if format == "arpa":
            if not isinstance(model, babyjax.NGram):
                raise ConfigError(f"format=arpa is for model=ngram; {run_dir} holds {run.config.choices.model}")
            if path.exists():
                raise BabyjaxError(f"{path} exists; choose another with out=")
            replace_file(path, "".join(f"{line}\n" for line in babyjax.arpa_lines(model, run.tokenizer.words)))
        else:
            if not isinstance(model, babyjax.BabyGPT):
                raise ConfigError(f"format=hf is for networks; {run_dir} holds {run.config.choices.model}")
            with new_folder(path) as folder:
                write_huggingface(model, run.tokenizer, folder)
                replace_file(folder / "README.md", model_card(run, progress))
    except OSError as error:
        raise BabyjaxError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def model_card(run: "babyjax.LoadedRun", progress: Callable[[str, float], None]) -> str:
    """Return the README.md of an exported run: its config, corpus and losses, counting beside them."""
    parameters = sum(leaf.size for leaf in babyjax.named_arrays(run.model).values())
    options = {key: value for key, value in arguments_of(run.config).items() if key not in PATHS}
    shown = yaml.safe_dump(options, sort_keys=False, allow_unicode=True)
    lines = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [babyjax]\n---",
        f"# {run.folder.name}",
        f"A language model of {parameters:,} parameters, trained with babyjax for {run.step:,} steps and exported in "
        "float32."
        if run.step
        else f"A language model of {parameters:,} parameters, exported by babyjax in float32.",
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")\n'
        'prompt = tokenizer("The ", return_tensors="pt", return_token_type_ids=False)\n'
        "print(tokenizer.decode(model.generate(**prompt, max_new_tokens=100, do_sample=True)[0]))\n```",
        f"## Options\n\n```yaml\n{shown}```",
    ]
    if run.manifest.corpus.characters:
        lines += _corpus_and_losses(run, progress)
    return "\n\n".join(lines) + "\n"


def _corpus_and_losses(run: "babyjax.LoadedRun", progress: Callable[[str, float], None]) -> list[str]:
    entry = run.manifest.corpus
    rows = ["| split | nats per token | bits per byte | tokens scored |", "|---|---:|---:|---:|"]
    rows += _losses(run)
    lines = [
        "## Corpus\n\n"
        f"{entry.name}: {entry.characters:,} characters, sha256 `{entry.sha256}`. The first nine tenths are the "
        "training split, the rest is the validation split.",
        "## Losses\n\n" + "\n".join(rows),
    ]
    try:
        corpus = run.corpus(progress=progress)
    except RunError:
        if entry.path is None:
            raise
        return lines  # the corpus is elsewhere
    tokens = babyjax.split_tokens(corpus.encode(run.tokenizer))
    pairs = babyjax.PairCounts.of_corpus(corpus, tokens, run.tokenizer.vocab_size)
    ngram = babyjax.ngram_baseline(tokens, run.tokenizer.vocab_size)
    counted = (
        f"Counting alone reaches {pairs.baseline('val'):.4f} nats per token on the validation split with an add-one "
        f"bigram and {ngram.val:.4f} with a {ngram.order}-gram (modified Kneser-Ney)."
    )
    return [*lines, counted]


def _losses(run: "babyjax.LoadedRun") -> list[str]:
    """The rows of the losses at the end of training, if this is the last step."""
    try:
        result = json.loads((run.folder / "result.json").read_text(encoding="utf-8"))
        return [
            f"| {name} | {loss['nats_per_token']:.4f} | {loss['bits_per_byte']:.4f} | {loss['tokens']:,} |"
            for name, loss in result["losses"].items()
            if result["step"] == run.step
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def main(argv: list[str]) -> None:
    """Export the run that the arguments name and print where it is."""
    config = read_options(ExportConfig, argv)
    if not config.run_dir:
        raise ConfigError("run_dir=DIR is missing: name the run to export")
    prepare_jax()
    with babyjax.Screen(stderr=True).status("writing the model") as update:
        path = export(config.run_dir, config.step, config.format, config.out, update)
    print_result(f"written to {config.out or Path(config.run_dir, path.name)}")


if __name__ == "__main__":
    run_command(main, help_text)

"""`babyjax import path=DIR run_dir=...`: a Hugging Face directory as a run."""

import babyjax
from babyjax.cli import command_line, describe, prepare_jax, print_result, run_command
from babyjax.errors import BabyjaxError, ConfigError
from babyjax.files import user_path
from babyjax.options import read_options
from babyjax.schema import Options, option, size


class ImportConfig(Options):
    path: str | None = option(None, "Hugging Face directory: config.json, safetensors, tokenizer.json")
    run_dir: str | None = option(None, "run directory to write")
    block_size: int | None = size(None, "longest context (empty: the model's, up to 1,024 if rotary)")
    overwrite: bool = option(False, "replace an existing run")


def help_text(argv: list[str]) -> str:
    """Return the help."""
    return (
        "usage: babyjax import path=DIR run_dir=DIR [key=value ...]\n\n"
        "Make a run of a model in the format of Hugging Face: GPT-2, Llama, Qwen2 or Qwen3.\n"
        "Nothing is downloaded. Needs the extra hf: pip install 'babyjax[hf]'.\n\n"
        f"{describe(ImportConfig())}\n\n"
        "examples\n"
        "  babyjax import path=SmolLM2-135M run_dir=checkpoints/smollm2\n"
        "  babyjax train config=checkpoints/smollm2/config.yaml train.grow_from=checkpoints/smollm2"
        " data.path=my.txt run_dir=tuned"
    )


def main(argv: list[str]) -> None:
    """Import the directory that the arguments name and print what it holds."""
    config = read_options(ImportConfig, argv)
    if not config.path:
        raise ConfigError("path=DIR is missing: name the Hugging Face directory")
    if not config.run_dir:
        raise ConfigError("run_dir=DIR is missing: name the run directory to write")
    folder = user_path(config.path, BabyjaxError)
    if not folder.is_dir():
        raise BabyjaxError(f"path={config.path} is not a folder; nothing is downloaded, so download the model first")
    prepare_jax()
    from babyjax.runs.directory import refuse_run, run_folder
    from babyjax.training.devices import require_memory

    refuse_run(run_folder(config.run_dir), overwrite=config.overwrite)
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors") if path.is_file())
    require_memory(2 * stored, f"the model in {config.path}, beside the copy that is saved,")
    with babyjax.Screen(stderr=True).status("reading the model"):
        model, tokenizer = babyjax.load_huggingface(folder, config.block_size)
        babyjax.save_run(model, tokenizer, config.run_dir, overwrite=config.overwrite)
    parameters = sum(leaf.size for leaf in babyjax.named_arrays(model).values())
    network = model.config
    print_result(
        f"{folder.name}: {parameters:,} parameters, {network.n_layer} blocks of width {network.n_embd}, "
        f"context of {network.block_size:,} tokens, vocabulary {tokenizer.vocab_size:,}\n"
        f"saved to  {config.run_dir}\n"
        f"next      {command_line('sample', f'run_dir={config.run_dir}')}"
    )


if __name__ == "__main__":
    run_command(main, help_text)

"""`babyjax COMMAND ...` and `python -m babyjax COMMAND ...`: list the commands, or run one."""

import importlib
import sys

from babyjax import __version__
from babyjax.cli import print_result, run_command
from babyjax.errors import ConfigError
from babyjax.schema import unknown

COMMANDS = {
    "train": "train a model and keep the run in a directory",
    "prepare": "a large text as tokens on disk, for training",
    "sweep": "find the best options for a model",
    "evaluate": "losses of a trained model over whole splits",
    "compare": "which of several runs is better",
    "sample": "text from a trained model",
    "export": "a trained model for other programs",
    "import": "a Hugging Face model as a run",
}


def help_text(argv: list[str]) -> str:
    """Return the list of commands."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        (
            "usage: babyjax COMMAND [key=value ...]",
            "",
            "The language-model ladder in JAX, from counting to GPT.",
            "",
            "commands",
            *(f"  {name:{width}}  {what}" for name, what in COMMANDS.items()),
            "",
            "babyjax COMMAND --help lists the options of a command; babyjax train model=babygpt is a good first run.",
        )
    )


def main() -> None:
    """Run the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in COMMANDS:
        command = importlib.import_module(f"babyjax.{name}")
        del sys.argv[1]
        run_command(command.main, command.help_text)
    run_command(_without_command, help_text)


def _without_command(argv: list[str]) -> None:
    if not argv:
        print_result(help_text(argv))
    elif argv[0] == "--version":
        print_result(__version__)
    elif "=" in argv[0]:
        raise ConfigError(f"the command is missing before {argv[0][:60]}; choose from {', '.join(COMMANDS)}")
    else:
        raise unknown("command", argv[0], [*COMMANDS, "--version"])


if __name__ == "__main__":
    main()

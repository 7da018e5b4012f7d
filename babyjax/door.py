"""What the three doors share: help, errors as one sentence with an exit status, JAX's compilation cache."""

import io
import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from babyjax.config import Option
from babyjax.errors import BabyjaxError, OutOfMemoryError


def run_door(main: Callable[[list[str]], int | None], help_text: Callable[[list[str]], str]) -> None:
    """Run a door on the process's arguments and exit: 0 done, 1 failed, 2 wrongly asked; Ctrl-C ends it as
    it ends any command, 130 to a shell.

    With BABYJAX_DEBUG=1 in the environment an error shows its traceback.
    """
    argv = sys.argv[1:]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a text may hold what the system's own encoding does not
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    # A compiled program runs to its end before Python sees Ctrl-C; until training asks for more, let it simply end us.
    previous = signal.getsignal(signal.SIGINT)
    if previous is signal.default_int_handler:  # and not where the shell has us ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        if wanted := [argument for argument in argv if argument in ("-h", "--help", "help")]:
            print(help_text([argument for argument in argv if argument not in wanted]))
            sys.exit(0)
        status = main(argv) or 0
        sys.stdout.flush()
        sys.exit(status)
    except BabyjaxError as error:
        fail(error, error)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        fail(OutOfMemoryError("out of memory; a smaller model, batch or vocabulary may fit"), error)
    finally:
        signal.signal(signal.SIGINT, previous)


def fail(error: BabyjaxError, cause: Exception) -> None:
    """Say what went wrong in one line and exit, or show where when debugging."""
    if debugging():
        raise cause
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    sys.exit(error.exit_status)


def command_line(door: str, *arguments: str) -> str:
    """The command line of a door, to be pasted where this one was typed: with the Python that runs now."""
    python = sys.executable
    if shutil.which("python") == python:
        python = "python"
    elif Path(python).is_relative_to(Path.cwd()):
        python = str(Path(python).relative_to(Path.cwd()))
    return shlex.join([python, "-m", f"babyjax.{door}", *arguments])


def describe_options(options: Iterable[tuple[str, Option]]) -> str:
    """One line an option: its key, default, meaning and range."""
    rows = []
    for key, option in options:
        value = "" if option.value is None else str(option.value).replace("\n", "\\n")
        limits = option.interval or " or ".join(option.choices)
        rows.append(
            (f"{key}={value.lower() if option.type is bool else value}", ", ".join(filter(None, (option.help, limits))))
        )
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"  {left:{width}}  {right}" for left, right in rows)


def debugging() -> bool:
    return os.environ.get("BABYJAX_DEBUG") == "1"


def _report_unraisable_of_main_thread(unraisable) -> None:
    if threading.current_thread() is threading.main_thread():
        sys.__unraisablehook__(unraisable)


def prepare_jax() -> None:
    """Keep compiled programs, however quickly compiled, in the user's cache folder or where JAX was told to."""
    import absl.logging
    import jax
    import platformdirs

    if not getattr(jax.config, "jax_compilation_cache_dir", None):
        jax.config.update("jax_compilation_cache_dir", os.path.join(platformdirs.user_cache_dir("babyjax"), "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if not debugging():
        # A failed save reaches us as an exception. Orbax logs it too, and TensorStore's threads print tracebacks.
        absl.logging.set_verbosity(absl.logging.FATAL)
        sys.unraisablehook = _report_unraisable_of_main_thread

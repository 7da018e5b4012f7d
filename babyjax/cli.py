"""What the commands share: help, errors as one sentence with an exit status, JAX's compilation cache."""

import io
import logging
import os
import shlex
import shutil
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from babyjax.errors import BabyjaxError, LostError, OutOfMemoryError, debugging, is_out_of_memory
from babyjax.files import discard, user_cache
from babyjax.native_output import exit_at_once
from babyjax.options import options_of
from babyjax.schema import Options, choices_of, interval_of


def run_command(main: Callable[[list[str]], int | None], help_text: Callable[[list[str]], str]) -> NoReturn:
    """Run a command on the process's arguments and exit: 0 done, 1 failed, 2 wrong usage.

    Ctrl-C ends it as it ends any command, 130 to a shell. BABYJAX_DEBUG=1 in the environment shows tracebacks.
    """
    argv = sys.argv[1:]
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a text may hold what the system's encoding does not have
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    # A compiled program runs to its end before Python sees Ctrl-C; until training handles it, it ends the process.
    previous = signal.getsignal(signal.SIGINT)
    if previous is signal.default_int_handler:  # not if the shell has us ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        if wanted := [argument for argument in argv if argument in ("-h", "--help", "help")]:
            print_result(help_text([argument for argument in argv if argument not in wanted]))
            sys.exit(0)
        sys.exit(main(argv) or 0)
    except BabyjaxError as error:
        _fail(error, error)
    except KeyboardInterrupt:
        print_error("interrupted")
        _exit(130)
    except Exception as error:
        if not is_out_of_memory(error):
            if _is_multiprocess():
                traceback.print_exc()
                _exit(1)
            raise
        _fail(OutOfMemoryError("out of memory; use a smaller model, batch or vocabulary"), error)
    finally:
        signal.signal(signal.SIGINT, previous)


def print_result(text: str) -> None:
    """Print the result of a command. Raises: BabyjaxError if standard output cannot be written."""
    stream = sys.stdout
    if stream is None:
        raise BabyjaxError("cannot write the result: standard output is closed")
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        discard(stream)
        sys.exit(1)
    except OSError as error:
        discard(stream)
        raise BabyjaxError(f"cannot write the result: {error.strerror}") from None


def print_error(sentence: str) -> None:
    """Print a sentence to standard error, if there is one."""
    if sys.stderr is not None:
        try:
            print(sentence, file=sys.stderr, flush=True)
        except OSError:
            discard(sys.stderr)


def _open_closed_streams() -> None:
    """Open those that are closed: the next file would get their number, and with it what XLA says on them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free


def _fail(error: BabyjaxError, cause: Exception) -> NoReturn:
    if debugging() and not _is_multiprocess():
        raise cause
    if debugging():
        traceback.print_exception(cause)
    elif isinstance(error, LostError):
        exit_at_once(error.exit_status, lost=True)
    else:
        print_error(f"error: {' '.join(str(error).split())}")
    _exit(error.exit_status)


def _is_multiprocess() -> bool:
    """Return whether this process trains together with others, which wait for it in a step or a save."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _exit(status: int) -> NoReturn:
    """End a command that failed. JAX and Orbax would wait for the other processes first, and they for this one."""
    if _is_multiprocess():
        exit_at_once(status)
    sys.exit(status)


def command_line(command: str, *arguments: str) -> str:
    """Return the command line of a command, to be pasted into the shell that typed this one."""
    python = Path(sys.executable)
    script = python.with_name("babyjax")
    start = [_as_typed(script)] if script.is_file() else [_as_typed(python), "-m", "babyjax"]
    return shlex.join([*start, command, *arguments])


def arguments_to_resume(argv: list[str]) -> list[str]:
    """Return the arguments that continue what was stopped."""
    return [argument for argument in argv if argument.partition("=")[0] != "overwrite"]


def _as_typed(program: Path) -> str:
    """Return the shortest way to call a program from the working directory."""
    if shutil.which(program.name) == str(program):
        return program.name
    with suppress(ValueError, OSError):  # not below the working directory, or that was deleted
        return str(program.relative_to(Path.cwd()))
    return str(program)


def describe(options: Options) -> str:
    """Return one line per option: key, value, help and range."""
    rows = []
    for key, value, field in options_of(options):
        text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        limits = " or ".join(filter(None, (*choices_of(field), interval_of(field))))
        shown = text.replace("\n", "\\n")
        rows.append((f"{key}={shown}", ", ".join(filter(None, (field.description, limits)))))
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"  {left:{width}}  {right}" for left, right in rows)


def prepare_jax() -> None:
    """Start JAX. On a CPU random bits are compiled without a loop. Compiled programs are kept in the user's cache
    folder, or where JAX was told to.

    Raises: BabyjaxError if there is no device.
    """
    import absl.logging
    import jax

    from babyjax.threefry import unroll_threefry

    unroll_threefry()
    if not jax.config.values["jax_compilation_cache_dir"] and (folder := user_cache()):
        jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        jax.devices()
    except RuntimeError as error:  # JAX_PLATFORMS names none, or a driver is missing
        raise BabyjaxError(f"JAX cannot start: {error}") from error
    if not debugging():
        # The cache is a convenience: a full disk or a folder that is not writable is no concern of the user.
        warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
        # A failed save or load reaches us as an exception. Orbax logs it too, and its event loop and threads print
        # tracebacks.
        absl.logging.set_verbosity(absl.logging.FATAL)
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        sys.unraisablehook = _main_thread_only


def _main_thread_only(unraisable) -> None:
    if threading.current_thread() is threading.main_thread():
        sys.__unraisablehook__(unraisable)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that receives SIGINT or SIGTERM when it comes; a second one interrupts at once."""
    received: list[int] = []

    def handle(number, frame):
        if received:
            raise KeyboardInterrupt
        received.append(number)

    caught = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    previous = {number: signal.signal(number, handle) for number in caught}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

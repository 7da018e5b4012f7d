"""What native libraries print past Python while several processes train together.

XLA reports a lost process with a page of messages and aborts this one without returning to Python. So another process,
the reader, receives these messages and prints the one sentence that matters. It starts without JAX.
"""

import atexit
import os
import subprocess
import sys
from collections import deque
from contextlib import suppress
from typing import Any, NoReturn

from babyjax.errors import debugging

# What XLA and gloo print before they abort because another process is lost, and the call that failed if it never came.
FATAL, GLOO, CONNECTING = b"the JAX distributed service detected fatal errors", b"instance of 'gloo::", b"RegisterTask"
LOST = "another process of this run failed, as its own message says, or is lost; the same command continues the run"
MISSED = "not all processes came within 5 minutes; start as many as distributed.processes= says"
NOISE = b"[Gloo]"  # how a library says that all is well
ENDED = b"\0"  # what a process sends that has said itself how it ended
LINES = 200  # shown of a process that crashed for another reason


def hold_native_output() -> None:
    """Send to a reader what is written to descriptors 1 and 2, except by Python.

    BABYJAX_DEBUG=1 leaves everything as it is.
    """
    if debugging():
        return
    command = [sys.executable, "-c", "from babyjax.native_output import read; read()"]
    # In a session of its own, since Ctrl-C is not meant for it.
    reader = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert reader.stdin is not None
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream: Any = getattr(sys, name)
        with suppress(AttributeError, OSError):  # closed, or not a file
            stream.flush()
            if stream.fileno() == number:
                shown = os.fdopen(os.dup(number), "w", 1, encoding="utf-8", errors="backslashreplace")
                setattr(sys, name, shown)
        os.dup2(reader.stdin.fileno(), number)
    atexit.register(_tell_reader, ENDED)


def _tell_reader(what: bytes) -> None:
    with suppress(OSError):
        os.write(2, b"" if debugging() else what)


def exit_at_once(status: int, *, lost: bool = False) -> NoReturn:
    """End this process at once, without waiting for its threads or for other processes.

    It has said how it ended, or has `lost` another process: the reader says so, once, since XLA may say it too.
    """
    _tell_reader(FATAL if lost else ENDED)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(status)


def read() -> None:
    """Read until the process ends. Show nothing, one sentence, or the last lines, by how it ended."""
    lines = deque((line for line in sys.stdin.buffer if not line.startswith(NOISE)), LINES)
    if any(ENDED in line for line in lines):
        return
    if any(FATAL in line or GLOO in line for line in lines):
        print("error:", MISSED if any(CONNECTING in line for line in lines) else LOST, file=sys.stderr)
    else:
        sys.stderr.buffer.writelines(lines)

"""What the commands share: help, errors, exit statuses, output that cannot be written."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from babyjax import __version__
from babyjax.__main__ import COMMANDS
from babyjax.__main__ import main as babyjax_main
from babyjax.cli import command_line, describe, print_result, run_command, stop_signals
from babyjax.config import Config
from babyjax.errors import BabyjaxError, ConfigError, DataError
from babyjax.sample import SampleConfig

SCRIPT = Path(sys.executable).parent / "babyjax"


def python(*arguments, **options):
    options = {"capture_output": True, "encoding": "utf-8", "timeout": 60, "check": False} | options
    return subprocess.run([sys.executable, *arguments], **options)


def leave(main, monkeypatch, *argv):
    """The exit status of a command whose main function is `main`."""
    monkeypatch.setattr(sys, "argv", ["test", *argv])
    with pytest.raises(SystemExit) as left:
        run_command(main, lambda argv: f"help {argv}")
    return left.value.code


def failing(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "status", "err"),
    [
        (lambda argv: None, 0, ""),
        (lambda argv: 3, 3, ""),
        (failing(DataError("it is\nempty")), 1, "error: it is empty\n"),
        (failing(ConfigError("no such option")), 2, "error: no such option\n"),
        (failing(KeyboardInterrupt()), 130, "interrupted\n"),
        (failing(MemoryError()), 1, "error: out of memory; use a smaller model, batch or vocabulary\n"),
        (failing(RuntimeError("RESOURCE_EXHAUSTED: 9 GiB")), 1, "error: out of memory; use a smaller model"),
    ],
)
def test_an_exit_status_and_a_sentence(monkeypatch, capsys, main, status, err):
    assert leave(main, monkeypatch) == status
    out, found = capsys.readouterr()
    assert out == ""
    assert found.startswith(err)
    assert found.count("\n") == (status in (1, 2, 130))


@pytest.mark.parametrize("error", [ZeroDivisionError(), DataError("x")])
def test_our_own_mistakes_and_debugging_show_a_traceback(monkeypatch, error):
    monkeypatch.setenv("BABYJAX_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["test"])
    with pytest.raises(type(error)):
        run_command(failing(error), lambda argv: "")


@pytest.mark.parametrize("flag", ["-h", "--help", "help"])
def test_help_is_given_the_other_arguments(monkeypatch, capsys, flag):
    assert leave(failing(ZeroDivisionError()), monkeypatch, "model=bigram", flag) == 0
    assert capsys.readouterr().out == "help ['model=bigram']\n"


def test_help_about_a_wrong_option_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["test", "--help"])
    with pytest.raises(SystemExit) as left:
        run_command(lambda argv: None, failing(ConfigError("no such option")))
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: no such option\n"


def test_ctrl_c_is_as_it_was_before(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    assert leave(lambda argv: 0, monkeypatch) == 0
    assert signal.getsignal(signal.SIGINT) is before


def test_the_first_signal_is_noted_and_the_second_interrupts():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with stop_signals() as received:
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert {number: signal.getsignal(number) for number in before} == before


def test_every_option_of_a_command_is_described():
    lines = describe(SampleConfig()).splitlines()
    assert len(lines) == len(SampleConfig.model_fields)
    assert "  prompt=             text to continue (empty: a new document or line)" in lines
    assert any(line.startswith("  top_p= ") and line.endswith(", (0, 1]") for line in lines)
    assert "data.tokenizer=char  " in describe(Config())
    assert "what a token is, or the path of a tokenizer.json, char or byte or bpe" in describe(Config())


@pytest.mark.parametrize(
    ("installed", "folder", "on_path", "line"),
    [
        (True, "venv", True, "babyjax sample 'run_dir=my run'"),
        (True, "here/.venv", False, ".venv/bin/babyjax sample 'run_dir=my run'"),
        (True, "venv", False, "{folder}/bin/babyjax sample 'run_dir=my run'"),
        (False, "venv", True, "python -m babyjax sample 'run_dir=my run'"),
        (False, "here/.venv", False, ".venv/bin/python -m babyjax sample 'run_dir=my run'"),
    ],
)
def test_a_command_line_runs_in_the_shell_that_typed_this_one(monkeypatch, tmp_path, installed, folder, on_path, line):
    programs = tmp_path / folder / "bin"
    programs.mkdir(parents=True)
    (tmp_path / "here").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "here")
    for name in ("python", "babyjax") if installed else ("python",):
        (programs / name).touch(0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setenv("PATH", str(programs) if on_path else "/nowhere")
    assert command_line("sample", "run_dir=my run") == line.format(folder=tmp_path / folder)


def babyjax_command(monkeypatch, *arguments):
    """The exit status of `babyjax ...`, run inside this process."""
    monkeypatch.setattr(sys, "argv", ["babyjax", *arguments])
    with pytest.raises(SystemExit) as left:
        babyjax_main()
    return left.value.code


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_without_a_command_they_are_listed(monkeypatch, capsys, arguments):
    assert babyjax_command(monkeypatch, *arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("usage: babyjax COMMAND [key=value ...]\n")
    assert all(f"\n  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["trian"], "unknown command 'trian'; did you mean train?"),
        (["xyz", "model=babygpt"], "unknown command 'xyz'; choose from train, prepare, sweep, evaluate, compare, "),
        (
            ["model=babygpt"],
            "the command is missing before model=babygpt; choose from train, prepare, sweep, evaluate, ",
        ),
        (["--versoin"], "unknown command '--versoin'; did you mean --version?"),
        (["a" * 10**6], "unknown command 'aaaaa"),
    ],
)
def test_an_unknown_command_gets_one_sentence(monkeypatch, capsys, arguments, complaint):
    assert babyjax_command(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"error: {complaint}")
    assert len(err) < 200


def test_the_version(monkeypatch, capsys):
    assert babyjax_command(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_a_command_can_be_run_in_three_ways():
    programs = [["-m", "babyjax", "sample"], ["-m", "babyjax.sample"], [SCRIPT, "sample"]]
    ran = [python(*program, "--help") for program in programs if SCRIPT.exists() or program[0] == "-m"]
    assert {(each.returncode, each.stdout, each.stderr) for each in ran} == {(0, ran[0].stdout, "")}
    assert ran[0].stdout.startswith("usage: babyjax sample ")
    for name in ("train", "evaluate"):
        assert python("-m", f"babyjax.{name}", "no.option=1").stderr.startswith("error: unknown option 'no.option'")


def test_help_and_typos_start_neither_jax_nor_numpy():
    program = (
        "import sys\nfrom babyjax.__main__ import main\n"
        "for line in sys.argv[1:]:\n"
        "    sys.argv = ['babyjax', *line.split()]\n"
        "    try: main()\n"
        "    except SystemExit: pass\n"
        "sys.exit(str({'jax', 'numpy', 'scipy', 'rich'} & set(sys.modules)))"
    )
    lines = ["", "train --help", "train model=babygtp", "evaluate --help", "sample -h", "sample", "train train.steps=0"]
    lines += ["prepare --help", "prepare data.pth=x", "prepare"]
    assert python("-c", program, *lines).stderr.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("redirect", "status", "complaint"),
    [
        (">&-", 1, "error: cannot write the result: standard output is closed\n"),
        (">/dev/full", 1, "error: cannot write the result: No space left on device\n"),
        ("| true", 1, ""),
        ("2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
        ("<&-", 0, ""),
    ],
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_that_cannot_be_written_gets_at_most_one_sentence(redirect, status, complaint):
    program = f"set -o pipefail; {sys.executable} -m babyjax train --help {redirect}"
    ran = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (status, complaint)


@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_error_without_standard_error_has_its_status_all_the_same(redirect):
    program = f"{sys.executable} -m babyjax train model=x {redirect}"
    ran = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")


def test_a_file_of_ours_never_becomes_a_closed_standard_stream():
    """The system gives the number of a closed stream to the next file; what XLA says on stderr would end up there."""
    program = (
        "import os, sys\nfrom babyjax.cli import run_command\n"
        "def main(argv):\n"
        "    assert sys.stdout is None and sys.stderr is None\n"
        "    return os.open(os.devnull, os.O_RDONLY)\n"
        "run_command(main, lambda argv: '')"
    )
    ran = subprocess.run(["bash", "-c", f'{sys.executable} -c "$0" <&- >&- 2>&-', program], check=False)
    assert ran.returncode == 3


def test_showing_what_cannot_be_shown_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(BabyjaxError, match="standard output is closed"):
        print_result("text")


def test_text_is_utf8_whatever_the_terminal_says(monkeypatch):
    program = (
        "from babyjax.cli import print_result, run_command\n"
        "run_command(lambda argv: print_result('明\\udcff'), lambda argv: '')"
    )
    ran = python("-c", program, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (ran.returncode, ran.stdout) == (0, "明\\udcff\n")

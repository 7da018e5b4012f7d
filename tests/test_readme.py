"""The two READMEs say the same, and their program runs. `test_docs.py` checks figures, links and options."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text):
    """Shell commands, without the comments behind them."""
    return [re.sub(r" +#.*", "", line) for block in blocks(text, "sh") for line in block.splitlines()]


@pytest.mark.parametrize("language", ["text", "python"])
def test_both_show_the_same_transcript_and_program(language):
    assert blocks(ENGLISH, language) == blocks(CHINESE, language) != []


def test_both_give_the_same_commands():
    assert commands(ENGLISH) == commands(CHINESE)
    assert all("pip install" in command for command in commands(ENGLISH)[:2])


def test_the_program_runs(tmp_path):
    """In a process of its own, compiled as its readers compile it."""
    (tmp_path / "program.py").write_text(blocks(ENGLISH, "python")[0], encoding="utf-8")
    program = [sys.executable, "program.py"]
    ran = subprocess.run(program, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    entropy, bigram, untrained = map(float, lines[0].split())
    assert 1 < entropy < 3.5
    assert bigram < 3.5 < untrained
    assert float(lines[1]) < 3.5

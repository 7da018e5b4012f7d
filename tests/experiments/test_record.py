"""A record says by which command it was made, and nothing of the folders of the machine."""

import sys

import pytest

from experiments.record import provenance


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/home/me/text.txt", "--quick"], "text.txt --quick"),
        (["../data/text.txt", "data.path=/data/text.txt"], "text.txt data.path=text.txt"),
        (["--out", "experiments/speed/avx512", "train.steps=3"], "--out experiments/speed/avx512 train.steps=3"),
    ],
)
def test_a_command_has_no_folder_outside_the_current_one(arguments, said, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["speed", *arguments])
    assert provenance("experiments.speed", "here")["command"] == f"python -m experiments.speed {said}"

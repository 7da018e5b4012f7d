import json
import os
import struct

import numpy as np
import pytest

pytest.importorskip("wandb", reason="wandb is not installed (the wandb extra)")
import wandb
from test_sinks import QUICK
from wandb.proto.wandb_internal_pb2 import Record

from babyjax.errors import BabyjaxError
from babyjax.models.base import LanguageModel
from babyjax.sinks.wandb import WandbSink
from babyjax.training.events import Event, State


def records_of(path):
    """The records of a .wandb file: a header, then LevelDB's log, whose blocks hold records in one piece or several."""
    data, place, pieces = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # too little of the block for a header
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        pieces += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(pieces)
            pieces = b""


def logged(folder):
    """What the offline runs in a folder hold: per run its config and {name: {step: value}}."""
    runs = []
    for path in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        config, scalars = {}, {}
        for record in records_of(path):
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            row = {"/".join([item.key, *item.nested_key]).lstrip("/"): item.value_json for item in record.history.item}
            for name, value in row.items():
                scalars.setdefault(name, {})[int(row["_step"])] = json.loads(value)
        runs.append((config, scalars))
    return runs


@pytest.mark.slow
def test_an_offline_run_holds_losses_speed_and_config(command, tmp_path):
    """Its service is a process of its own; nothing leaves this machine."""
    options = (*QUICK, "log=wandb", "checkpoint.interval=18")
    ran = command("train", *options, WANDB_MODE="offline")
    assert (ran.returncode, ran.stderr) == (0, "")
    ((config, scalars),) = logged(tmp_path / "here")
    assert config["model"]["n_embd"] == 4
    rows = [json.loads(row) for row in (tmp_path / "here" / "metrics.jsonl").read_text().splitlines()]
    assert scalars["loss/step"] == pytest.approx({row["step"]: row["train_loss"] for row in rows})
    assert scalars["loss/val"] == pytest.approx({row["step"]: row["val_loss"] for row in rows if "val_loss" in row})
    assert scalars["speed/steps_per_second"][20] > 0

    (tmp_path / "here" / "steps" / "20").rename(tmp_path / "lost")
    ran = command("train", *options, WANDB_MODE="offline")
    assert (ran.returncode, ran.stderr) == (0, "")
    _, (_, scalars) = logged(tmp_path / "here")
    assert list(scalars["loss/step"]) == [19, 20]


@pytest.mark.slow
def test_runs_that_are_logged_at_the_same_time_are_told_apart(tmp_path, monkeypatch):
    """As seeds side by side are."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for seed in range(2):
        (tmp_path / f"seed-{seed}").mkdir()
    sinks = [WandbSink(tmp_path / f"seed-{seed}", 0, {"seed": seed}) for seed in range(2)]
    for step in (1, 2):
        for seed, sink in enumerate(sinks):
            sink(Event(step, State(step, LanguageModel(), ()), np.array([seed + step / 10]), 0.1))
    for sink in sinks:
        sink.close()
    wandb.teardown()  # a run may finish before its file is written; the end of a command waits for it like this
    for seed in range(2):
        ((config, scalars),) = logged(tmp_path / f"seed-{seed}")
        assert config["seed"] == seed
        assert scalars["loss/step"] == {1: seed + 0.1, 2: seed + 0.2}


def test_a_log_that_wandb_refuses_is_told_in_one_sentence(call, monkeypatch):
    def refuse(**_):
        raise wandb.errors.UsageError("api_key not configured (no-tty).\nCall wandb.login")

    monkeypatch.setattr(wandb, "init", refuse)
    status, _, err = call("train", *QUICK, "log=wandb")
    assert (status, err) == (1, "error: cannot open log=wandb: api_key not configured (no-tty). Call wandb.login\n")


def test_nothing_is_logged_through_a_link(tmp_path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb").symlink_to(tmp_path / "victim")
    with pytest.raises(BabyjaxError, match="wandb is a symbolic link"):
        WandbSink(tmp_path / "run", 0, {})
    assert not os.listdir(tmp_path / "victim")

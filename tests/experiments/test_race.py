"""Races against the clock: what is timed, kept and ranked. The real entries take minutes and are not run here."""

import json
import shlex
import sys
from importlib import import_module

import pytest

from experiments.race import Entry, race, table

ENTRIES = {
    "slow": Entry("sleeps", ("sleep 0.1", "sleep 0.1", "echo '{{\"nats_per_token\": 1.{seed}}}'"), (1, 2)),
    "fast": Entry("cheats", ('test -f text.txt && echo \'{{"adaptive": {{"nats_per_token": 0.5}}}}\'',), (0,)),
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("abc", encoding="utf-8")

    def start(*arguments):
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        monkeypatch.setattr(sys, "argv", ["race", *arguments, "--out", str(out)])
        race(tmp_path / "five_minutes", ENTRIES, lambda results, folder: None)
        return json.loads((out / "results.json").read_text(encoding="utf-8"))["entries"]

    return lambda *names: start(str(tmp_path / "text.txt"), *names)


def test_the_clock_runs_from_the_first_command_to_the_last(run):
    found = run()
    slow, fast = found["slow"]["runs"], found["fast"]["runs"]
    assert [each["static"] for each in slow] == [1.1, 1.2]
    assert all(0.2 < each["seconds"] < 5 and len(each["command_seconds"]) == 3 for each in slow)
    assert all(each["seconds"] >= sum(each["command_seconds"]) - 0.02 for each in slow)
    assert (fast[0]["adaptive"], fast[0]["static"]) == (0.5, None)


def test_results_are_kept_by_name_and_seed(run, monkeypatch):
    run("slow")
    found = run("fast")
    assert [each["seed"] for each in found["slow"]["runs"]] == [1, 2]
    monkeypatch.setitem(ENTRIES, "slow", ENTRIES["slow"]._replace(commands=("echo '{{\"nats_per_token\": 3}}'",)))
    assert [each["static"] for each in run("slow")["slow"]["runs"]] == [3, 3]


def test_the_best_comes_first_and_what_is_late_says_so(run):
    run()
    rows = table({"entries": run()}, "static", 0.1)
    assert len(rows) == 3
    assert rows[2].startswith("| slow | babyjax | 1.1500 ± 0.6353 | 2 | ")
    assert "(over 0.1)" in rows[2]
    assert "over" not in table({"entries": run("fast")}, "static", 10)[2]


def test_a_command_that_fails_stops_the_race(run, monkeypatch):
    monkeypatch.setitem(ENTRIES, "slow", Entry("fails", ("ls nothere",), (0,)))
    with pytest.raises(Exception, match="returned non-zero"):
        run("slow")
    with pytest.raises(SystemExit):
        run("other")


@pytest.mark.parametrize("name", ["five_minutes", "speedrun"])
def test_the_entries_are_commands_that_exist(name):
    from babyjax.options import load_config

    for entry in import_module(f"experiments.{name}.__main__").ENTRIES.values():
        for command in " & ".join(entry.commands).split("&"):
            words = shlex.split(command.format(seed=0))
            if words[:2] == ["babyjax", "train"]:
                load_config(words[2:])
            else:
                assert words[:2] in (["babyjax", "evaluate"], ["python", "-m"], ["wait"], [])

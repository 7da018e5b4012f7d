"""The READMEs say the same, and what they say is true."""

import json
import re
import runpy
from collections import Counter
from pathlib import Path

import pytest

from experiments.ladder.__main__ import table
from experiments.seed_comparison.claims import CLAIMS, Verdict

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def numbers(text):
    return re.findall(r"\d[\d,.]*\d", text)


@pytest.mark.parametrize("language", ["text", "python"])
def test_both_show_the_same_transcript_and_program(language):
    assert blocks(ENGLISH, language) == blocks(CHINESE, language) != []


def test_both_give_the_same_commands():
    ours, theirs = (blocks(text, "sh") for text in (ENGLISH, CHINESE))
    assert ours[:2] == theirs[:2]
    assert all("pip install" in command and command.count("\n") == 1 for command in ours[:2])


@pytest.mark.parametrize("experiment", ["speed", "counts", "gpt_speed"])
def test_the_figures_are_those_on_record(experiment):
    recorded = (ROOT / "experiments" / experiment / "results.md").read_text(encoding="utf-8").strip()
    assert recorded in ENGLISH
    start = CHINESE.index("## 速度")
    chinese = CHINESE[start : CHINESE.index("## 继续阅读")]
    assert Counter(numbers(recorded)) <= Counter(numbers(chinese))


def test_what_is_said_of_the_frontier_is_on_record():
    rows = json.loads((ROOT / "experiments" / "rank_frontier" / "results.json").read_text(encoding="utf-8"))["rows"]
    gaps = {row["n_embd"]: row["gap"] for row in rows}
    for text in (ENGLISH, CHINESE):
        said = re.findall(r"(\d+\.?\d*(?:e-\d+)?) nats? \(n_embd (\d+)\)", text)
        assert len(said) >= 3
        for gap, width in said:
            assert float(gap) == float(f"{gaps[int(width)]:.2g}")


def test_what_is_said_of_growth_is_on_record():
    pairs = json.loads((ROOT / "experiments" / "growth" / "results.json").read_text(encoding="utf-8"))["pairs"]

    def mean(pair, start, share):
        return sum(run[start][int(share * len(run[start])) - 1] for run in pair["runs"])

    assert all(mean(pair, "grown", 1) < mean(pair, "random", 0.5) for pair in pairs)
    assert [mean(pair, "random", 1) < mean(pair, "grown", 1) for pair in pairs] == [False] + [True] * 5


def test_what_is_said_of_the_ladder_is_on_record():
    results = json.loads((ROOT / "experiments" / "ladder" / "results.json").read_text(encoding="utf-8"))
    losses = {row["rung"]: row["val"] for row in results["rungs"]}
    said = [losses["babygpt"], losses["babygpt-v9-layernorm"], results["ngrams"]["4"]]
    assert min(losses.values()) == said[1]
    for text in (ENGLISH, CHINESE):
        assert all(f"{nats:.4f}" in text for nats in said)
    assert table(results) == (ROOT / "experiments" / "ladder" / "results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["tinyshakespeare", "songci"])
def test_what_is_said_of_the_claims_is_on_record(name):
    folder = ROOT / "experiments" / "seed_comparison" / name
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    verdicts = Counter(claim.judge(results).verdict for claim in CLAIMS)
    tally = [str(verdicts[verdict]) for verdict in Verdict]
    for text in (ENGLISH, CHINESE):
        section = text[text.index("seed_comparison/songci/report.md") : text.index("experiments/colab.ipynb")]
        assert " ".join(tally) in " ".join(re.findall(r"\d+", section))


def test_the_program_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text(blocks(ENGLISH, "python")[0], encoding="utf-8")
    runpy.run_path(str(tmp_path / "program.py"))
    floor, bigram, babygpt = (float(number) for number in capsys.readouterr().out.splitlines()[0].split())
    assert 1 < floor < 3.5
    assert bigram < 3.5 < babygpt


def test_every_link_leads_somewhere():
    for text in (ENGLISH, CHINESE):
        links = re.findall(r"\]\(([^)#]+)\)", text)
        assert links
        assert all((ROOT / link).exists() for link in links)

"""How much does a narrow embedding cost? The lowest training loss at every width, beside what AdamW reaches.

    python -m experiments.rank_frontier tinyshakespeare.txt
    python -m experiments.rank_frontier --report

With n_embd below the vocabulary size, the logits of BabyGPT v1 have a limited rank. For every width: the lowest exact
training loss found, its gap to the bigram entropy, and the gap as a share of the mutual information of neighboring
tokens, which is all that a model of one previous token can gain.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np

import babyjax
from babyjax.counts.factors import Factors
from babyjax.counts.fit import CountsProblem, Position, Restart, plan_restarts
from experiments.rank_frontier.report import report
from experiments.record import counted, run_experiment

SEED = 0
LAST_TOLERANCE = 1e-12


def widths_of(vocab_size: int) -> list[int]:
    """Return every width up to 24, then fewer, and V - 1 and V."""
    widths = (width for width in (*range(25), 28, 32, 40, 48, 56) if width < vocab_size - 1)
    return [*widths, vocab_size - 1, vocab_size]


def effort_at(width: int) -> tuple[int, float]:
    """Return the number of restarts and their tolerance: a narrow model has many minima, a wide one flat ones."""
    return (64, 1e-5) if width <= 12 else (16, 1e-5) if width <= 18 else (3, 1e-11)


def widened(factors: Factors, width: int) -> Factors:
    """Return factors of the same logits with more columns, which the embedding does not use yet."""
    more = width - factors.embedding.shape[1]
    random = np.random.default_rng(SEED)
    head = np.hstack([factors.head, random.normal(size=(len(factors.head), more))])
    return Factors(np.pad(factors.embedding, ((0, 0), (0, more))), head, factors.bias)


def end_of(problem: CountsProblem) -> Position:
    """Fit to the end."""
    *_, last = problem.run(problem.start())
    return last.position


def best_at(
    pairs: babyjax.PairCounts, width: int, narrower: Factors | None, effort: tuple[int, float]
) -> tuple[Factors, dict[str, Any]]:
    """Return the best of many restarts, one of them from the best of the width before, fitted to the last digits."""
    clock = time.perf_counter()
    count, tolerance = effort
    restarts, given = plan_restarts(count, SEED, 0.0, 0.0), None
    if narrower is not None and width < pairs.vocab_size:
        given = widened(narrower, min(width, pairs.vocab_size - 1))
        restarts.insert(0, Restart("given", SEED, 0.0, 0.0))
    search = CountsProblem(pairs, width, restarts, tolerance=tolerance, given=given)
    found = end_of(search)
    last = [Restart("given", SEED, 0.0, 0.0)]
    end = end_of(CountsProblem(pairs, width, last, tolerance=LAST_TOLERANCE, given=found.best))
    winner = search.restarts[int(found.best_restart)]
    return end.best, {
        "loss": float(end.best_score),
        "starts": int(found.restart),
        "won_by": f"{winner.start}, seed {winner.seed}",
        "seconds": time.perf_counter() - clock,
    }


def adamw(task: babyjax.Task, path: str, width: int, steps: int) -> babyjax.LanguageModel:
    """Train v1 by its own recipe: 5,000 steps of 32 x 8 tokens."""
    config = babyjax.load_config([f"data.path={path}", f"model.n_embd={width}", f"train.steps={steps}"])
    trainer = babyjax.make_trainer(config, task)
    model = None
    for event in trainer.run(trainer.init()):
        model = event.state.model
    assert model is not None
    return model


def measure(path: str, quick: bool) -> dict[str, Any]:
    """Fit every width on counts, and train it by AdamW."""
    corpus = babyjax.read_corpus(path)
    vocab_size = babyjax.CharTokenizer.fit(corpus.text).vocab_size
    rows, factors, entropy = [], None, 0.0
    for width in (0, 2) if quick else widths_of(vocab_size):
        task = babyjax.load_task(babyjax.load_config([f"data.path={path}", f"model.n_embd={width}"]))
        entropy = task.entropy
        factors, found = best_at(task.pairs, width, factors, (2, 1e-3) if quick else effort_at(width))
        ours, theirs = (
            {name: loss.per_token for name, loss in task.evaluate(model).items()}
            for model in (factors.model(width), adamw(task, path, width, 20 if quick else 5000))
        )
        rows.append({"n_embd": width, **found, "gap": found["loss"] - entropy, "val": ours["val"], "adamw": theirs})
        print(rows[-1], flush=True)
    information = rows[0]["gap"]
    return {
        "corpus": corpus.name,
        "corpus_sha256": corpus.sha256,
        "vocab_size": vocab_size,
        "seed": SEED,
        "entropy": entropy,
        "mutual_information": information,
        "counted": counted(path),
        "rows": [row | {"share_of_information": row["gap"] / information} for row in rows],
    }


if __name__ == "__main__":
    run_experiment(Path(__file__).parent, measure, report)

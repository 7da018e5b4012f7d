import numpy as np
import pytest

from babyjax import evaluated, load_config, load_task, make_trainer
from babyjax.evaluation.losses import Nats
from babyjax.training.events import Event, State, Trainer


def event_of(step, model, steps=1, last=False):
    return Event(step, State(step, model, ()), np.ones(steps), 0.1, last=last)


def losses_of(events, interval):
    """(step, loss) of evaluated events; a loss is the number of evaluations made so far."""
    count = 0

    def evaluate(model):
        nonlocal count
        count += 1
        return {"val": Nats(count, 1, 1, 0.0)}

    seen = evaluated(iter(events), evaluate, interval)
    return [(event.step, event.losses and event.losses["val"].nats) for event in seen], count


def test_multiples_of_the_interval_and_the_last_step_are_evaluated():
    events = [event_of(0, "a", 0), *(event_of(step, f"model {step}", 2, step == 10) for step in (2, 4, 6, 8, 10))]
    assert losses_of(events, 4) == ([(0, None), (2, None), (4, 1), (6, None), (8, 2), (10, 3)], 3)
    assert losses_of(events, 5) == ([(0, None), (2, None), (4, None), (6, None), (8, None), (10, 1)], 1)


def test_an_event_that_completes_no_step_is_not_evaluated():
    """That of a run that continues at a multiple of the interval has its row already."""
    assert losses_of([event_of(8, "a", 0)], 4) == ([(8, None)], 0)


def test_losses_that_a_trainer_gives_are_taken():
    given = {"val": Nats(7, 1, 1, None)}
    events = [event_of(step, "a")._replace(losses=given if step < 3 else None) for step in (1, 2, 3, 4)]
    assert losses_of(events, 2) == ([(1, None), (2, 7), (3, None), (4, 1)], 1)


SYNTHETIC = ("data=synthetic", "data.length=2000", "data.states=5")
TRAINERS = {
    "sgd": ("model=babygpt", "model.n_embd=4", "train.batch_size=4", "train.steps=20"),
    "counts": ("model=babygpt", "model.n_embd=2", "trainer=counts", "trainer.starts=2"),
    "counting": ("model=bigram",),
    "counting n-grams": ("model=ngram", "model.order=3"),
}


@pytest.mark.parametrize("name", TRAINERS)
def test_every_trainer_keeps_the_protocol(name):
    """The first event completes no step, the others every step once, and only the last says that it is the last."""
    config = load_config([*SYNTHETIC, *TRAINERS[name]])
    task = load_task(config)
    trainer = make_trainer(config, task)
    assert isinstance(trainer, Trainer)
    state = trainer.init()
    assert int(state.step) == 0
    step, event = 0, None
    for number, event in enumerate(trainer.run(state, (7,))):
        assert (number == 0) == (len(event.train_losses) == 0)
        step += len(event.train_losses)
        assert int(event.state.step) == event.step == step
        assert bool(event.summary) == event.last
    assert event is not None
    assert event.last
    assert trainer.total_steps in (None, step)
    assert list(trainer.run(event.state)) == []

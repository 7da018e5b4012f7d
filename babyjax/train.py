"""`babyjax train model=babygpt`: train a model and keep the run in a directory."""

import dataclasses
from collections.abc import Iterator
from itertools import chain
from textwrap import fill

import babyjax
from babyjax.cli import command_line, complain, describe, prepare_jax, run_command, stop_signals
from babyjax.config import BabyGPTConfig, Config, NGramConfig
from babyjax.errors import DivergenceError, RunError
from babyjax.options import GROUPS, config_to_dict, load_config, presets_of, steps_are_bound


def help_text(argv: list[str]) -> str:
    """Return the help, with the options of the presets chosen in `argv`."""
    config = load_config(argv)
    groups = []
    for group in GROUPS:
        chosen = getattr(config.choices, group)
        names = ", ".join(name + "*" * (name == chosen) for name in presets_of(group))
        first, rest = f"  {group:9}  ", " " * 13
        groups.append(fill(names, 100, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False))
    return "\n".join(
        (
            "usage: babyjax train [group=preset ...] [key=value ...] [config=FILE.yaml]",
            "",
            "Train a language model and keep the run in a directory.",
            "The same command continues a run that was stopped.",
            "",
            "groups and their presets (* chosen here)",
            *groups,
            "",
            "options, with the values they have here",
            describe(config),
            "  config=  a YAML file of options; those on the command line have the last word",
            "",
            "examples",
            "  babyjax train model=babygpt",
            "  babyjax train model=babygpt trainer=counts",
            "  babyjax train model=gpt-tiny data.path=my.txt",
            "  babyjax train model=bigram data.path=my.txt run_dir=checkpoints/mine",
        )
    )


def main(argv: list[str]) -> int:
    """Train, or continue, the run that the arguments describe. Returns the exit status."""
    config = load_config(argv)
    screen = babyjax.Screen()
    with screen.status("starting JAX, reading the corpus"):
        prepare_jax()
        log = babyjax.find_log(config.log)
        task = babyjax.load_task(config)
    with babyjax.Run.open(config, task.corpus, task.tokenizer, task.parts) as run:
        if config.train.grow_from and not run.step:
            task = dataclasses.replace(task, initialize=_grown(config, task, screen))
        _introduce(config, task, screen)
        with screen.status("compiling"):
            trainer = babyjax.make_trainer(config, task)
            state = run.restore(trainer.init())
            events = trainer.run(state, (config.train.eval_interval, config.checkpoint.interval))
            event = next(events, None)
        if event is None:
            _already_trained(config, run.step, screen)
        else:
            run.begin()
            if run.step:
                screen.say(f"continuing from step {run.step:,}")
            show = babyjax.ConsoleSink(screen, task.entropy, run.step, trainer.total_steps)
            with babyjax.open_sinks(show, log, run.folder, run.step, config_to_dict(config)) as sinks:
                event, received = _record(chain([event], events), config, task, run, sinks)
            for failure in sinks.failures:
                complain(f"warning: {failure}")
            if not event.last:
                _stopped(event.step, argv, screen)
                return 128 + received
            _conclude(event, config, task, screen)
            state = event.state
        if config.model.is_v1 and not run.has_decomposition():
            with stop_signals() as received:
                _decompose(state.model, config, task, run, screen, received)
            if received:
                return 128 + received[0]
    if screen.failure:
        complain(f"error: {config.run_dir} is trained and saved, but showing it failed: {screen.failure}")
    return 1 if screen.failure else 0


def _record(
    events: Iterator["babyjax.Event"],
    config: Config,
    task: "babyjax.Task",
    run: "babyjax.Run",
    sinks: "babyjax.Sinks",
) -> tuple["babyjax.Event", int]:
    """Evaluate, save and show events until the last or a signal. Returns the event, and the signal's number or 0."""
    event, interval = None, config.train.eval_interval
    with stop_signals() as received:
        try:
            for event in babyjax.evaluated(events, task.evaluate, interval):
                run.record(event, evaluated=event.step % interval == 0)
                sinks(event)
                if received:
                    break
            assert event is not None, "a trainer yields at least one event"
            run.save(event)
        except DivergenceError as error:
            run.wait()
            raise DivergenceError(f"{error}; {run.kept()}") from error
        run.wait()
    return event, received[0] if received else 0


def _grown(config: Config, task: "babyjax.Task", screen: "babyjax.Screen"):
    """Return the initialization that grows the run `train.grow_from`. Raises: RunError if its vocabulary differs."""
    smaller = babyjax.load_run(config.train.grow_from or "")
    if smaller.tokenizer != task.tokenizer:
        raise RunError(f"train.grow_from={config.train.grow_from} was trained with another vocabulary")
    assert isinstance(config.model, BabyGPTConfig), "no other model is trained by gradient steps"
    larger = config.model
    screen.say(f"grown from {smaller.config.choices.model} in {config.train.grow_from}, step {smaller.step:,}")
    return lambda key: babyjax.grow(smaller.model, larger, key)


def _introduce(config: Config, task: "babyjax.Task", screen: "babyjax.Screen") -> None:
    parameters = f", {task.parameters:,} parameters" if task.parameters else ""
    screen.say(
        f"{config.choices.model} on {task.corpus.name}: {len(task.corpus.text):,} characters, "
        f"vocabulary {task.tokenizer.vocab_size:,}{parameters}"
    )
    screen.say(f"bigram entropy {task.entropy:.4f} nats/token (lower bound for models of one previous token)")
    if task.corpus.entropy_rate is not None:
        screen.say(f"source entropy {task.corpus.entropy_rate:.4f} nats/token (lower bound for any model, long run)")


def _conclude(event: "babyjax.Event", config: Config, task: "babyjax.Task", screen: "babyjax.Screen") -> None:
    losses = event.losses or {}
    train, val = losses["train"].per_token, losses["val"].per_token
    screen.say(f"\nfinal     train {train:.4f} ({train - task.entropy:+.4f} to the entropy), val {val:.4f} nats/token")
    if not isinstance(config.model, NGramConfig):
        with screen.status("counting n-grams to compare with"):
            order, val = task.ngram.order, task.ngram.val
        screen.say(f"counted   a {order}-gram has val {val:.4f} (its order chosen on held-out training text)")
    if task.sampled:
        scored = ", ".join(
            f"{loss.tokens:,} of {name}" + (f" +-{loss.standard_error:.4f}" if loss.standard_error is not None else "")
            for name, loss in losses.items()
        )
        rule = " (standard errors from segments of at least 5,000 tokens)" if "+-" in scored else ""
        screen.say(f"scored    {scored}{rule}")
        screen.say(f"          all tokens: {command_line('evaluate', f'run_dir={config.run_dir}')}")
    for line in event.summary:
        screen.say(line)
    screen.say(f"saved to  {config.run_dir}")
    screen.say(f"next      {command_line('sample', f'run_dir={config.run_dir}')}")


def _already_trained(config: Config, step: int, screen: "babyjax.Screen") -> None:
    screen.say(f"{config.run_dir} is already trained ({step:,} step{'s' * (step != 1)}).")
    more = "" if config.choices.trainer != "sgd" or steps_are_bound(config) else f"train.steps={2 * step} continues, "
    screen.say(f"{more}overwrite=true starts over; or: {command_line('sample', f'run_dir={config.run_dir}')}")


def _stopped(step: int, argv: list[str], screen: "babyjax.Screen") -> None:
    arguments = [argument for argument in argv if argument.partition("=")[0] != "overwrite"]
    screen.say(f"\nstopped   after step {step:,}; {'saved' if step else 'nothing to save'}")
    screen.say(f"next      {command_line('train', *arguments)}")


def _decompose(
    model: "babyjax.LanguageModel",
    config: Config,
    task: "babyjax.Task",
    run: "babyjax.Run",
    screen: "babyjax.Screen",
    received: list[int],
) -> None:
    """Say where the loss of a finished run of v1 comes from, and write it to the run."""
    assert isinstance(model, babyjax.BabyGPT)
    with screen.status("loss decomposition: fitting the best network of this width; Ctrl-C skips it"):
        terms = babyjax.decompose(task.pairs, model, task.evaluate(model), lambda: bool(received))
    if terms is None:
        screen.say("\ntraining is complete; run the same command again to compute the loss decomposition")
        return
    run.write_decomposition(terms._asdict())
    train = terms.entropy + terms.approximation + terms.optimization
    included = ", smoothing and penalty included" if config.choices.trainer == "counts" else ""
    screen.say("\nloss decomposition, nats/token")
    for sign, nats, what in (
        (" ", terms.entropy, "entropy: lower bound for models of one previous token"),
        ("+", terms.approximation, f"approximation: the best with this n_embd ({terms.best})"),
        ("+", terms.optimization, f"optimization: this run above that best{included}"),
        ("=", train, "train"),
        ("+", terms.generalization, "generalization"),
        ("=", train + terms.generalization, "val"),
    ):
        screen.say(f"  {sign} {nats:7.4f}  {what}")


if __name__ == "__main__":
    run_command(main, help_text)

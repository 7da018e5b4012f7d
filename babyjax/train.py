"""`babyjax train model=babygpt`: train a model and keep the run in a directory."""

from textwrap import fill

import babyjax
from babyjax.cli import arguments_to_resume, command_line, describe, prepare_jax, print_error, run_command, stop_signals
from babyjax.config import Config
from babyjax.options import GROUPS, load_config, presets_of, steps_are_bound


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
            "  babyjax train model=babygpt train.seeds=8",
            "  babyjax train model=bigram data.path=my.txt run_dir=checkpoints/mine",
        )
    )


def main(argv: list[str]) -> int:
    """Train, or continue, the run that the arguments describe. Returns the exit status."""
    config = load_config(argv)
    screen, chosen = babyjax.Screen(), config.processes
    if not config.is_distributed:
        with screen.status("starting JAX"):
            prepare_jax()
        return _main(config, argv, screen)
    if chosen.process == 0 and chosen.processes != 1:
        screen.say(f"waiting at {chosen.coordinator} for all {chosen.processes} processes")
    with babyjax.processes.connected(config):
        prepare_jax()
        return _main(config, argv, babyjax.Screen(silent=not babyjax.processes.is_main_process()))


def _main(config: Config, argv: list[str], screen: "babyjax.Screen") -> int:
    with screen.status("reading the corpus") as update:
        log = babyjax.sinks.find_log(config.log)
        task = babyjax.load_task(config, progress=update)
    received = (_train if config.train.seeds == 1 else _train_seeds)(config, task, log, screen, argv)
    if received:
        return 128 + received
    if screen.failure:
        print_error(f"error: {config.run_dir} is trained and saved, but showing it failed: {screen.failure}")
    return 1 if screen.failure else 0


def _train(
    config: Config, task: "babyjax.Task", log: "babyjax.sinks.Log | None", screen: "babyjax.Screen", argv: list[str]
) -> int:
    """Train one run and say what it has learned. Returns the number of the signal that ended it, or 0."""
    with babyjax.Run.open(config, task.corpus, task.tokenizer, task.parts) as run:
        if not run.step:
            task = babyjax.task.grown(config, task)
        babyjax.runner.introduce(config, task, screen)

        def console(step: int, total: int | None) -> "babyjax.ConsoleSink":
            if step:
                screen.say(f"continuing from step {step:,}")
            return babyjax.ConsoleSink(screen, task.entropy, step, total)

        job = babyjax.Job(run, config, task, babyjax.make_trainer(config, task))
        state, event, received = babyjax.train_run(job, log, screen, console)
        model = babyjax.processes.gather(state.model) if config.model.is_v1 else None
        if event is None:
            _already_trained(config, run.step, screen)
        elif not event.last:
            _stopped(event.step, config, argv, screen)
            return received
        else:
            _conclude(event, config, task, screen)
            received = 0  # a signal in the last moment stopped nothing
        if model is not None and babyjax.processes.is_main_process() and not run.has_decomposition():
            with stop_signals() as signals:
                _decompose(model, config, task, run, screen, signals)
            received = signals[0] if signals else 0
    return received


def _train_seeds(
    config: Config, task: "babyjax.Task", log: "babyjax.sinks.Log | None", screen: "babyjax.Screen", argv: list[str]
) -> int:
    """Train a run per seed and say how they vary. Returns the number of the signal that ended it, or 0."""
    babyjax.runner.introduce(config, task, screen)
    losses, received = babyjax.studies.train_seeds(config, task, log, screen)
    if received:
        screen.say(f"\nstopped   {len(losses)} of {config.train.seeds} seeds are trained")
        screen.say(f"next      {command_line('train', *arguments_to_resume(argv))}")
    else:
        babyjax.studies.say_seeds(config, task, losses, screen)
    return received


def _conclude(event: "babyjax.Event", config: Config, task: "babyjax.Task", screen: "babyjax.Screen") -> None:
    losses = event.losses or {}
    train, val = losses["train"].per_token, losses["val"].per_token
    screen.say(f"\nfinal     train {train:.4f} ({train - task.entropy:+.4f} to the entropy), val {val:.4f} nats/token")
    babyjax.runner.say_ngram(config, task, screen)
    if task.sampled:
        scored = ", ".join(
            f"{loss.tokens:,} of {name}" + (f" +-{loss.standard_error:.4f}" if loss.standard_error is not None else "")
            for name, loss in losses.items()
        )
        rule = " (standard errors from segments of at least 5,000 tokens)" if "+-" in scored else ""
        screen.say(f"scored    {scored}{rule}")
        screen.say(f"          all tokens: {command_line('evaluate', f'run_dir={config.run_dir}')}")
    if event.verification:
        done = [check.passed for check in event.verification.checks if check.passed is not None]
        tokens = event.verification.loss.tokens
        screen.say(f"verified  {sum(done)} of {len(done)} checks passed on {tokens:,} validation tokens")
    for line in event.summary:
        screen.say(line)
    screen.say(f"saved to  {config.run_dir}")
    screen.say(f"next      {command_line('sample', f'run_dir={config.run_dir}')}")


def _already_trained(config: Config, step: int, screen: "babyjax.Screen") -> None:
    screen.say(f"{config.run_dir} is already trained ({step:,} step{'s' * (step != 1)}).")
    more = "" if config.choices.trainer != "sgd" or steps_are_bound(config) else f"train.steps={2 * step} continues, "
    screen.say(f"{more}overwrite=true starts over; or: {command_line('sample', f'run_dir={config.run_dir}')}")


def _stopped(step: int, config: Config, argv: list[str], screen: "babyjax.Screen") -> None:
    screen.say(f"\nstopped   after step {step:,}; {'saved' if step else 'nothing to save'}")
    arguments = [each for each in arguments_to_resume(argv) if not each.startswith("distributed.process=")]
    own = ", with its own distributed.process=" * (len(arguments) < len(arguments_to_resume(argv)))
    everywhere = f"in every process{own}: " if config.is_distributed else ""
    screen.say(f"next      {everywhere}{command_line('train', *arguments)}")


def _decompose(
    model: "babyjax.LanguageModel",
    config: Config,
    task: "babyjax.Task",
    run: "babyjax.Run",
    screen: "babyjax.Screen",
    received: list[int],
) -> None:
    """Say where the loss of a finished run of v1 comes from, and write it to the run."""
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

"""`babyjax sweep optimizer.learning_rate=1e-3,3e-3 ...`: find the best options, not looking at the validation split."""

import itertools
import math
import re
from pathlib import Path
from typing import Any

import babyjax
from babyjax.cli import arguments_to_resume, command_line, prepare_jax, print_error, run_command
from babyjax.config import Config, MixtureConfig
from babyjax.errors import BabyjaxError, ConfigError, DivergenceError, OutOfMemoryError
from babyjax.options import all_arguments, load_config, options_of
from babyjax.schema import kinds_of

SEEDS = 3
TRIALS, WINNER, RESULT, PICTURE = "trials", "winner", "sweep.json", "sweep.svg"
MOST_TRIALS = 1000


def help_text(argv: list[str]) -> str:
    """Return the help."""
    return (
        "usage: babyjax sweep key=value,value,... [group=preset ...] [key=value ...]\n\n"
        "Train every combination of the listed values, and the best with several seeds.\n"
        "Trials learn the first 90 % of the training split and are judged on the rest of it, so the validation\n"
        f"split is not used to choose. The best is then trained on the whole training split with train.seeds={SEEDS}.\n"
        "The same command continues a sweep that was stopped.\n\n"
        "The options are those of babyjax train; any but a path can have several values.\n\n"
        "examples\n"
        "  babyjax sweep optimizer.learning_rate=1e-3,3e-3,1e-2\n"
        "  babyjax sweep model=babygpt-v3-attention,babygpt-v4-multihead train.steps=1000 data.path=my.txt\n"
        "  babyjax sweep model=gpt-tiny optimizer.learning_rate=1e-2,2e-2 optimizer.weight_decay=0.01,0.1 train.seeds=5"
    )


def combinations(arguments: dict[str, str]) -> list[dict[str, str]]:
    """Return the options of each trial, of those that have several values. Raises: ConfigError if none can have."""
    first = load_config([f"{key}={value.split(',')[0]}" for key, value in arguments.items()])
    if isinstance(first.model, MixtureConfig) or first.train.grow_from:
        raise ConfigError("a sweep trains each model from the start: leave out model=mixture and train.grow_from=")
    paths = {key for key, _, field in options_of(first) if str in kinds_of(field)}
    lists = {key: value.split(",") for key, value in arguments.items() if "," in value and key not in paths}
    if not lists:
        listed = [f", and {key}= cannot have them" for key in sorted(paths) if "," in arguments.get(key, "")]
        raise ConfigError(
            f"no option has several values{''.join(listed)}; write them as in optimizer.learning_rate=1e-3,3e-3,1e-2"
        )
    for key, values in lists.items():
        if key in ("train.seeds", "train.seed", "overwrite", "log") or key.partition(".")[0] == "data":
            raise ConfigError(f"{key}={arguments[key]} cannot have several values in a sweep")
        if len(set(values)) < len(values) or "" in values:
            raise ConfigError(f"{key}={arguments[key]} has a value twice, or an empty one")
    if (trials := math.prod(map(len, lists.values()))) > MOST_TRIALS:
        raise ConfigError(f"{trials:,} combinations are too many for a sweep; list at most {MOST_TRIALS:,}")
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def config_of(arguments: dict[str, str], chosen: dict[str, str]) -> Config:
    """Return the config of a combination. Raises: ConfigError as `load_config` does."""
    return load_config([f"{key}={value}" for key, value in (arguments | chosen).items()])


def name_of(chosen: dict[str, str]) -> str:
    """Return "optimizer.learning_rate=0.001,train.steps=500", which is also the name of a folder."""
    return re.sub(r"[^\w.,=+-]", "_", ",".join(f"{key}={value}" for key, value in chosen.items()))


def main(argv: list[str]) -> int:
    """Train all combinations, say which is best, and train that with several seeds. Returns the exit status."""
    arguments = all_arguments(argv)
    trials = combinations(arguments)
    configs = [config_of(arguments, chosen) for chosen in trials]
    if len(set(map(str, configs))) < len(configs):
        raise ConfigError("two combinations of the sweep are the same; list each value once")
    if configs[0].is_distributed:
        raise ConfigError("a sweep runs in one process; leave out distributed=")
    path = arguments.get("run_dir") or f"checkpoints/sweep-{Path(configs[0].run_dir).name.removesuffix('-seeds')}"
    babyjax.studies.folder_of_runs(path, "|".join(map(re.escape, (TRIALS, WINNER, RESULT, PICTURE))))
    folder = Path(path).expanduser()
    screen = babyjax.Screen()
    with screen.status("starting JAX, reading the corpus") as update:
        prepare_jax()
        log = babyjax.sinks.find_log(configs[0].log)
        task = babyjax.load_task(configs[0], progress=update)
    babyjax.runner.introduce(configs[0], task, screen)
    losses, received = _try_all(trials, configs, folder, task, log, screen)
    if received:
        screen.say(f"\nstopped   {len(losses)} of {len(trials)} trials are done")
        return _stopped(argv, received, screen)
    best = min(range(len(trials)), key=losses.__getitem__)
    if not math.isfinite(losses[best]):
        raise DivergenceError("no trial of the sweep has a finite loss; try lower learning rates")
    rows = [{"options": chosen, "held_out": loss} for chosen, loss in zip(trials, losses, strict=True)]
    result = {"corpus": task.corpus.name, "trials": rows, "best": trials[best]}
    babyjax.studies.write_json(folder / RESULT, result)
    screen.say(f"\nbest      {' '.join(f'{key}={value}' for key, value in trials[best].items())}")
    for remark in _at_the_edge(trials, trials[best]):
        screen.say(f"          {remark}")
    winner = configs[best]
    seeds = (winner.train.seeds if "train.seeds" in arguments else SEEDS) if winner.seeded else 1
    run_dir = str(folder / WINNER / name_of(trials[best]))
    winner = winner.replace(train=winner.train.replace(seeds=seeds), run_dir=run_dir)
    final = babyjax.load_task(winner, task.corpus, task.tokenizer)
    screen.say("          trained again, on the whole training split")
    found, received = babyjax.studies.train_seeds(winner, final, log, screen)
    if received:
        return _stopped(argv, received, screen)
    babyjax.studies.say_seeds(winner, final, found, screen)
    result["winner"] = [loss._asdict() for loss in found]
    babyjax.studies.write_json(folder / RESULT, result)
    try:
        babyjax.pictures.require_picture(folder / PICTURE)
    except BabyjaxError as error:
        screen.say(f"picture   none: {error}")
    else:
        babyjax.pictures.draw_sweep(result, folder / PICTURE)
        screen.say(f"picture   {folder / PICTURE}")
    if screen.failure:
        print_error(f"error: the sweep in {folder} is done and saved, but showing it failed: {screen.failure}")
    return 1 if screen.failure else 0


def _try_all(
    trials: list[dict[str, str]],
    configs: list[Config],
    folder: Path,
    task: "babyjax.Task",
    log: "babyjax.sinks.Log | None",
    screen: "babyjax.Screen",
) -> tuple[list[float], int]:
    """Train the trials. Returns their losses on held-out training text and the number of a signal, or 0."""
    text, losses = task.training_text(), []
    runs: list[Any] = [  # Any: pyright does not know that frozen models have a hash
        config.replace(train=config.train.replace(seeds=1), run_dir=str(folder / TRIALS / name_of(chosen)))
        for config, chosen in zip(configs, trials, strict=True)
    ]

    tasks: dict[Any, babyjax.Task] = {}

    def task_of(config: Any) -> "babyjax.Task":
        key = config.model, config.train.eval_tokens
        if key not in tasks:
            tasks.clear()  # one text in memory is enough
            tasks[key] = babyjax.load_task(config, text, task.tokenizer)
        return tasks[key]

    babyjax.studies.start_over(runs, task_of(runs[0]))
    width = max(len(" ".join(chosen.values())) for chosen in trials)
    screen.say(f"\n{len(trials)} trials on the first 90 % of the training split, judged on the rest of it")
    screen.say(f"\n  {'held out':>8}  {' '.join(trials[0])}")
    for index, (chosen, config) in enumerate(zip(trials, runs, strict=True), 1):
        values, received = " ".join(chosen.values()), 0
        name = f"trial {index} of {len(trials)}: {values}"
        try:
            (loss, how), received = babyjax.studies.train_one(config, task_of(config), log, screen, name)
            if loss is None:
                return losses, received
            losses.append(loss.val)
        except (DivergenceError, OutOfMemoryError) as error:
            losses.append(math.inf)
            how = "diverged" if isinstance(error, DivergenceError) else "out of memory"
        shown = f"{losses[-1]:8.4f}" if math.isfinite(losses[-1]) else f"{'-':>8}"
        screen.say(f"  {shown}  {values:{width}}  {how}")
        if received and index < len(trials):
            return losses, received
    return losses, 0


def _at_the_edge(trials: list[dict[str, str]], best: dict[str, str]) -> list[str]:
    """Say for which numbers the best is the largest or smallest that was tried."""
    remarks = []
    for key, value in best.items():
        try:
            values = {float(chosen[key]) for chosen in trials}
        except ValueError:
            continue
        if len(values) > 1 and float(value) in (min(values), max(values)):
            side = "largest" if float(value) == max(values) else "smallest"
            remarks.append(f"{key}={value} is the {side} that was tried; the best may lie beyond it")
    return remarks


def _stopped(argv: list[str], received: int, screen: "babyjax.Screen") -> int:
    screen.say(f"next      {command_line('sweep', *arguments_to_resume(argv))}")
    return 128 + received


if __name__ == "__main__":
    run_command(main, help_text)

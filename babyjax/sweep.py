"""`babyjax sweep optimizer.learning_rate=1e-3,3e-3 ...`: find the best options, not looking at the validation split."""

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import babyjax
from babyjax.cli import command_line, prepare_jax, run_command
from babyjax.config import Config, kinds_of
from babyjax.errors import BabyjaxError, ConfigError, DivergenceError, RunError
from babyjax.files import finite_json, replace_file
from babyjax.options import load_config, options_of, parse_arguments

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
        "  babyjax sweep model=babygpt-v3-attention,babygpt-v4-heads train.steps=1000 data.path=my.txt\n"
        "  babyjax sweep model=gpt-tiny optimizer.learning_rate=1e-2,2e-2 optimizer.weight_decay=0.01,0.1 train.seeds=5"
    )


def combinations(argv: list[str]) -> list[dict[str, str]]:
    """Return the options of each trial, of those that have several values. Raises: ConfigError if none has."""
    arguments = parse_arguments(argv)
    first = load_config([f"{key}={value.split(',')[0]}" for key, value in arguments.items()])
    paths = {"config"} | {key for key, _, field in options_of(first) if str in kinds_of(field)}
    lists = {key: value.split(",") for key, value in arguments.items() if "," in value and key not in paths}
    if not lists:
        raise ConfigError("no option has several values; write them as in optimizer.learning_rate=1e-3,3e-3,1e-2")
    if own := sorted({"train.seeds", "train.seed", "run_dir", "overwrite"} & set(lists)):
        raise ConfigError(f"{own[0]}={arguments[own[0]]} cannot have several values in a sweep")
    if (trials := math.prod(map(len, lists.values()))) > MOST_TRIALS:
        raise ConfigError(f"{trials:,} combinations are too many for a sweep; list at most {MOST_TRIALS:,}")
    for key, values in lists.items():
        if len(set(values)) < len(values) or "" in values:
            raise ConfigError(f"{key}={arguments[key]} has a value twice, or an empty one")
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def config_of(argv: list[str], chosen: dict[str, str]) -> Config:
    """Return the config of a combination. Raises: ConfigError as `load_config` does."""
    return load_config([f"{key}={value}" for key, value in (parse_arguments(argv) | chosen).items()])


def name_of(chosen: dict[str, str]) -> str:
    """Return "optimizer.learning_rate=0.001,train.steps=500", which is also the name of a folder."""
    return re.sub(r"[^\w.,=+-]", "_", ",".join(f"{key}={value}" for key, value in chosen.items()))


def main(argv: list[str]) -> int:
    """Train all combinations, say which is best, and train that with several seeds. Returns the exit status."""
    trials = combinations(argv)
    configs = [config_of(argv, chosen) for chosen in trials]
    seeds = configs[0].train.seeds if "train.seeds" in parse_arguments(argv) else SEEDS
    folder = _folder(argv, configs)
    screen = babyjax.Screen()
    with screen.status("starting JAX, reading the corpus"):
        prepare_jax()
        log = babyjax.find_log(configs[0].log)
        task = babyjax.load_task(configs[0].replace(train=configs[0].train.replace(seeds=1)))
    babyjax.introduce(configs[0], task, screen)
    losses, received = _try_all(trials, configs, folder, task, log, screen)
    if received:
        screen.say(f"\nstopped   {len(losses)} of {len(trials)} trials are done")
        return _stopped(argv, received, screen)
    best = min(range(len(trials)), key=losses.__getitem__)
    if not math.isfinite(losses[best]):
        raise DivergenceError("every trial of the sweep diverged; try lower learning rates")
    rows = [
        {"options": chosen, "held_out": loss if math.isfinite(loss) else None}
        for chosen, loss in zip(trials, losses, strict=True)
    ]
    result = {"corpus": task.corpus.name, "trials": rows, "best": trials[best]}
    _write(folder, result)
    said = " ".join(f"{key}={value}" for key, value in trials[best].items())
    screen.say(f"\nbest      {said}")
    for remark in _at_the_edge(trials, trials[best]):
        screen.say(f"          {remark}")
    winner = configs[best]
    counted = seeds if winner.seeded else 1
    train = winner.train.replace(seeds=counted)
    winner = winner.replace(train=train, run_dir=str(folder / WINNER))
    final = babyjax.grown(winner, babyjax.load_task(winner, task.corpus, task.tokenizer), screen)
    screen.say("          trained again, on the whole training split")
    found, received = babyjax.train_seeds(winner, final, log, screen)
    if received:
        return _stopped(argv, received, screen)
    babyjax.say_seeds(winner, final, found, screen)
    result["winner"] = [loss._asdict() for loss in found]
    _write(folder, result)
    try:
        babyjax.require_picture(folder / PICTURE)
    except BabyjaxError as error:
        screen.say(f"picture   none: {error}")
    else:
        babyjax.draw_sweep(result, folder / PICTURE)
        screen.say(f"picture   {folder / PICTURE}")
    return 1 if screen.failure else 0


def _folder(argv: list[str], configs: list[Config]) -> Path:
    """Return the folder of the sweep. Raises: RunError if it holds a run."""
    given = parse_arguments(argv).get("run_dir")
    path = given or f"checkpoints/sweep-{Path(configs[0].run_dir).name.removesuffix('-seeds')}"
    if (babyjax.run_folder(path) / "run.json").exists():
        raise RunError(f"{path} holds a run; use another run_dir= for a sweep")
    return Path(path).expanduser()


def _try_all(
    trials: list[dict[str, str]],
    configs: list[Config],
    folder: Path,
    task: "babyjax.Task",
    log: "babyjax.Log | None",
    screen: "babyjax.Screen",
) -> tuple[list[float], int]:
    """Train the trials. Returns their losses on held-out training text and the number of a signal, or 0."""
    text, tasks, losses = task.training_text(), {}, []
    width = max(len(" ".join(chosen.values())) for chosen in trials)
    keys = " ".join(trials[0])
    screen.say(f"\n{len(trials)} trials on the first 90 % of the training split, judged on the rest of it")
    screen.say(f"\n  {'held out':>8}  {keys}")
    for index, (chosen, config) in enumerate(zip(trials, configs, strict=True), 1):
        values = " ".join(chosen.values())
        key = config.model, config.train.eval_tokens, config.train.grow_from
        if key not in tasks:
            tasks[key] = babyjax.grown(config, babyjax.load_task(config, text, task.tokenizer), screen)
        config = config.replace(train=config.train.replace(seeds=1), run_dir=str(folder / TRIALS / name_of(chosen)))
        try:
            loss, done, received = babyjax.train_one(
                config, tasks[key], log, screen, f"trial {index} of {len(trials)}: {values}"
            )
        except DivergenceError:
            loss, done, received = None, "diverged", 0
        if received:
            return losses, received
        losses.append(math.inf if loss is None else loss.val)
        shown = f"{losses[-1]:8.4f}" if math.isfinite(losses[-1]) else f"{'-':>8}"
        screen.say(f"  {shown}  {values:{width}}  {done}")
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


def _write(folder: Path, result: dict[str, Any]) -> None:
    try:
        replace_file(folder / RESULT, json.dumps(finite_json(result), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise RunError(f"cannot write in {folder}: {error.strerror or error}") from None


def _stopped(argv: list[str], received: int, screen: "babyjax.Screen") -> int:
    again = [argument for argument in argv if argument.partition("=")[0] != "overwrite"]
    screen.say(f"next      {command_line('sweep', *again)}")
    return 128 + received


if __name__ == "__main__":
    run_command(main, help_text)

"""`python -m babyjax.train model=babygpt`: train a model and keep the run in a directory."""

import signal
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.console import Console

from babyjax.config import GROUPS, BigramConfig, Config, choices_of, load_config, options_of
from babyjax.door import command_line, describe_options, prepare_jax, run_door
from babyjax.errors import DivergenceError, RunError
from babyjax.progress import TrainingDisplay, duration, say


def help_text(argv: list[str]) -> str:
    """The help, with the options of the groups chosen in `argv`."""
    config = load_config(argv)
    groups = []
    for group in GROUPS:
        here = getattr(config, group).name
        groups.append(f"  {group:9}  {', '.join(name + '*' * (name == here) for name in choices_of(group))}")
    return "\n".join(
        (
            "usage: python -m babyjax.train [group=choice ...] [key=value ...]",
            "",
            "Train a language model and keep the run in a directory.",
            "The same command on a directory that holds the run continues it.",
            "",
            "groups, and what they can be (* here)",
            *groups,
            "",
            "options, with the values they have here",
            describe_options(options_of(config).items()),
            "",
            "for example",
            "  python -m babyjax.train model=babygpt",
            "  python -m babyjax.train model=bigram data.path=my.txt run_dir=checkpoints/mine",
        )
    )


class Job:
    """What every way of training needs: the run directory, the tokens, and exact evaluation on both splits."""

    def __init__(self, config: Config, console: Console):
        from babyjax.data.batches import split_tokens
        from babyjax.data.corpus import load_corpus, read_corpus
        from babyjax.data.tokenizer import TOKENIZERS
        from babyjax.training.run import RunDirectory, describe
        from babyjax.training.statistics import ExactEvaluator, PairCounts

        self.config, self.console = config, console
        self.run = RunDirectory(config.run_dir)
        self.run.exists()
        if config.data.path is not None:
            self.corpus = read_corpus(config.data.path)
        else:
            options = {
                key: value for key, value in vars(config.data).items() if key not in ("name", "path", "tokenizer")
            }
            self.corpus = load_corpus(config.data.name, **options)
        self.tokenizer = TOKENIZERS[config.data.tokenizer].fit(self.corpus.text)
        self.split = split_tokens(self.tokenizer.encode(self.corpus.text), config.model.block_size)
        self.about = describe(config, self.tokenizer, self.corpus)
        pairs = PairCounts.from_split(self.split, self.tokenizer.vocab_size)
        self.floor = pairs.bigram_floor("train")
        self.evaluator = ExactEvaluator(pairs, self.tokenizer.byte_lengths)

    def reached(self) -> int:
        """The step a run to be continued has reached, 0 where there is none; without a checkpoint there is none."""
        if self.config.overwrite or not self.run.exists() or not self.run.checkpoints.steps():
            return 0
        self.run.check_same_run(self.config, self.corpus)
        model, steps = self.config.model, self.config.train.steps
        if isinstance(model, BigramConfig) and model.counting == "windows" and self.run.config().train.steps != steps:
            raise RunError(f"{self.run.path} has counted other windows, train.steps={self.run.config().train.steps}")
        return self.run.checkpoints.steps()[-1]

    def create(self) -> None:
        self.run.create(self.config, self.tokenizer, self.corpus)

    def say(self, line: str) -> None:
        say(self.console, line)

    def evaluate(self, model: Any) -> dict[str, float]:
        """Exact loss of `model` on each split, in nats per token."""
        return {name: loss.per_token for name, loss in self.evaluator(model).items()}

    def save(self, state: Any, step: int, losses: dict[str, float]) -> None:
        self.run.checkpoints.save(state, step, self.config.checkpoint.keep, losses, self.about)

    def introduce(self, parameters: int, devices: str) -> None:
        self.say(
            f"{self.config.model.name} on {self.corpus.name}: {len(self.corpus.text):,} characters, "
            f"vocabulary {self.tokenizer.vocab_size:,}, {parameters:,} parameters, on {devices}"
        )
        self.say(f"floor {self.floor:.4f} nats per token: no model of the previous token does better here")
        if self.corpus.entropy_rate is not None:
            self.say(f"source {self.corpus.entropy_rate:.4f} nats per token: its entropy, the floor in the long run")

    def conclude(self, losses: dict[str, float], did: str) -> None:
        self.say(
            f"\nreached  train {losses['train']:.4f} ({losses['train'] - self.floor:+.4f} to the floor), "
            f"val {losses['val']:.4f} nats per token"
        )
        self.say(f"took     {did}")
        self.say(f"kept in  {self.config.run_dir}")
        self.say(f"next     {command_line('sample', f'run_dir={self.config.run_dir}')}")


def train_by_counting(job: Job) -> None:
    """The count bigram: one pass over the corpus, or the seed's random windows."""
    import jax
    import numpy as np

    from babyjax.models.bigram import Bigram, count_matrix
    from babyjax.training.devices import require_memory
    from babyjax.training.statistics import count_windows
    from babyjax.training.step import TrainState

    config, vocab_size = job.config, job.tokenizer.vocab_size
    assert isinstance(config.model, BigramConfig)
    job.introduce(vocab_size**2, jax.devices()[0].device_kind)
    require_memory(2 * 4 * vocab_size**2, f"a table of {vocab_size:,} x {vocab_size:,} counts")
    job.create()
    start = time.perf_counter()
    if config.model.counting == "corpus":
        counts = count_matrix(job.split.train, vocab_size)
    else:
        counts = count_windows(
            job.split.train,
            vocab_size,
            config.train.seed,
            steps=config.train.steps,
            batch_size=config.train.batch_size,
            block_size=config.model.block_size,
        )
    jax.block_until_ready(counts)
    seconds = time.perf_counter() - start
    model = Bigram(counts, config.model.smoothing)
    losses = job.evaluate(model)
    job.run.add_rows([{"step": 1, "train_loss": losses["train"], "val_loss": losses["val"]}])
    job.save(TrainState(jax.numpy.int32(1), model, ()), 1, losses)
    job.run.checkpoints.wait()
    job.conclude(losses, f"{duration(seconds)} to count {int(np.asarray(counts).sum(dtype=np.int64)):,} pairs")


def train_by_gradient(job: Job, first_step: int, stopped: list[int], argv: list[str]) -> None:
    """AdamW on random windows, from `first_step` until `train.steps` or until `stopped` holds a signal."""
    import jax

    from babyjax.models import make_model
    from babyjax.training.devices import data_mesh, program_memory, replicated, require_memory
    from babyjax.training.loop import dispatches
    from babyjax.training.optimizer import make_optimizer
    from babyjax.training.run import check_own_corpus, check_own_files
    from babyjax.training.step import init_state, make_advance, start_key

    config, batch_size, block_size = job.config, job.config.train.batch_size, job.config.model.block_size
    steps, eval_interval = config.train.steps, config.train.eval_interval
    mesh = data_mesh(batch_size)
    optimizer = make_optimizer(config.optimizer)

    def start():
        key = start_key(config.train.seed)
        return init_state(make_model(config.model, job.tokenizer.vocab_size, key), optimizer)

    shapes = jax.eval_shape(start)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes.model))
    job.introduce(
        parameters, f"{mesh.size} x {jax.devices()[0].device_kind}" if mesh.size > 1 else jax.devices()[0].device_kind
    )
    require_memory(
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)),
        f"a model of {parameters:,} parameters",
    )
    with job.console.status("compiling"):
        clock = time.perf_counter()
        state = jax.jit(start, out_shardings=replicated(mesh))()
        tokens = jax.device_put(job.split.train, replicated(mesh))
        advance = make_advance(optimizer, config.train.seed, batch_size, block_size, mesh)
        advance = advance.lower(state, tokens, 1).compile()
        require_memory(program_memory(advance), f"a batch of {batch_size:,} x {block_size:,} tokens")
        losses = job.evaluate(state.model)
        compilation = time.perf_counter() - clock
    if first_step:
        saved = job.run.checkpoints.load(first_step)
        check_own_files(saved.about, config, job.tokenizer, job.run)
        check_own_corpus(saved.about, job.corpus, job.run)
        state = saved.fill(state)
        job.run.rewind(config, first_step)
        job.say(f"continuing from step {first_step:,}")
    else:
        job.create()
    job.say(f"compiled in {duration(compilation)}\n")

    step, seconds = first_step, 0.0
    with ExitStack() as finally_, TrainingDisplay(job.console, first_step, steps) as display:
        finally_.callback(job.run.checkpoints.wait)
        for done in dispatches(advance, state, tokens, steps, eval_interval, config.checkpoint.interval):
            step = done.step
            seconds += done.seconds
            rows = [
                {"step": step - len(done.losses) + 1 + index, "train_loss": float(loss)}
                for index, loss in enumerate(done.losses)
            ]
            display.advance(step, rows[-1]["train_loss"], len(rows) * batch_size * block_size / done.seconds)
            evaluated = step == steps or step % eval_interval == 0
            if evaluated:
                losses = job.evaluate(done.state.model)
                rows[-1] |= {"exact_train_loss": losses["train"], "val_loss": losses["val"]}
                display.evaluated(step, losses["train"], losses["val"], job.floor)
            job.run.add_rows(rows)
            if step == steps or stopped or step % config.checkpoint.interval == 0:
                job.save(done.state, step, losses if evaluated else {})
            if stopped:
                break
    if step < steps:
        arguments = [argument for argument in argv if argument.partition("=")[0] != "overwrite"]
        job.say(f"\nstopped  after step {step:,}; it is saved")
        job.say(f"next     {command_line('train', *arguments)}")
    else:
        job.conclude(losses, f"{duration(seconds)} for {steps - first_step:,} steps")


@contextmanager
def stop_signals():
    """A list that receives SIGINT or SIGTERM when it comes; a second one interrupts at once."""
    received: list[int] = []

    def handle(number, frame):
        if received:
            raise KeyboardInterrupt
        received.append(number)

    caught = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    previous = {number: signal.signal(number, handle) for number in caught}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def main(argv: list[str]) -> int:
    config = load_config(argv)
    console = Console()
    with console.status("starting JAX, reading the corpus"):
        prepare_jax()
        job = Job(config, console)
    by_counting = isinstance(config.model, BigramConfig)
    with job.run.locked():
        first_step = job.reached()
        if first_step >= (1 if by_counting else config.train.steps):
            job.say(f"{config.run_dir} is trained already, to step {first_step:,}.")
            more = "" if by_counting else f"train.steps={2 * first_step} goes on, "
            job.say(f"{more}overwrite=true starts anew; or: {command_line('sample', f'run_dir={config.run_dir}')}")
            return 0
        if by_counting:
            train_by_counting(job)
            return 0
        with stop_signals() as stopped:
            try:
                train_by_gradient(job, first_step, stopped, argv)
            except DivergenceError as error:
                kept = job.run.checkpoints.steps()
                where = f"step {kept[-1]:,} is kept in {config.run_dir}" if kept else "no step was saved before"
                raise DivergenceError(f"{error}; {where}") from error
            return 128 + stopped[0] if stopped else 0


if __name__ == "__main__":
    run_door(main, help_text)

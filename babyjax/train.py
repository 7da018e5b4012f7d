"""`python -m babyjax.train model=babygpt`: train a model and keep the run in a directory."""

import shlex
import signal
import time
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from babyjax.config import GROUPS, BigramConfig, Config, choices_of, load_config, options_of, save_config
from babyjax.door import describe_options, prepare_jax, run_door
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
        from babyjax.training.checkpoint import RunDirectory
        from babyjax.training.statistics import ExactEvaluator, PairCounts

        self.config = config
        self.console = console
        self.run = RunDirectory(config.run_dir)
        held = self.run.exists() and not config.overwrite
        if config.data.path is not None:
            corpus = read_corpus(config.data.path)
        else:
            options = {
                key: value for key, value in vars(config.data).items() if key not in ("name", "path", "tokenizer")
            }
            corpus = load_corpus(config.data.name, **options)
        if held:
            self.run.check_same_run(config, corpus)
        self.tokenizer = TOKENIZERS[config.data.tokenizer].fit(corpus.text)
        self.split = split_tokens(self.tokenizer.encode(corpus.text), config.model.block_size)
        if held:
            save_config(config, self.run.path / "config.yaml")
        else:
            self.run.create(config, self.tokenizer, corpus)
        self.corpus = corpus
        self.saved_step = max(self.run.saved_steps(), default=0)
        pairs = PairCounts.from_split(self.split, self.tokenizer.vocab_size)
        self.floor = pairs.bigram_floor("train")
        self.evaluator = ExactEvaluator(pairs, self.tokenizer.byte_lengths)

    def say(self, line: str) -> None:
        say(self.console, line)

    def evaluate(self, model: Any) -> dict[str, float]:
        """Exact loss of `model` on each split, in nats per token."""
        return {name: loss.per_token for name, loss in self.evaluator(model).items()}

    def introduce(self, parameters: int) -> None:
        import jax

        device = jax.devices()[0]
        self.say(
            f"{self.config.model.name} on {self.corpus.name}: {len(self.corpus.text):,} characters, "
            f"vocabulary {self.tokenizer.vocab_size:,}, {parameters:,} parameters, on {device.device_kind}"
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
        self.say(f"next     python -m babyjax.sample run_dir={shlex.quote(self.config.run_dir)}")


def train_by_counting(job: Job) -> int:
    """The count bigram: one pass over the corpus, or the seed's random windows."""
    import jax

    from babyjax.models.bigram import Bigram, count_matrix
    from babyjax.training.statistics import count_windows
    from babyjax.training.step import TrainState

    config, vocab_size = job.config, job.tokenizer.vocab_size
    assert isinstance(config.model, BigramConfig)
    job.introduce(vocab_size**2)
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
    job.run.keep_rows([{"step": 1, "train_loss": losses["train"], "val_loss": losses["val"]}], after=0)
    job.run.save(TrainState(jax.numpy.int32(1), model, ()), 1, config.checkpoint.keep, losses)
    job.run.wait()
    job.conclude(losses, f"{int(counts.sum()):,} pairs counted in {duration(seconds)}")
    return 0


def train_by_gradient(job: Job) -> int:
    """AdamW on random windows."""
    import jax
    import jax.numpy as jnp

    from babyjax.models import make_model
    from babyjax.training.loop import dispatches
    from babyjax.training.optimizer import make_optimizer
    from babyjax.training.step import init_state, make_advance, start_key

    config, steps = job.config, job.config.train.steps
    batch_tokens = config.train.batch_size * config.model.block_size
    optimizer = make_optimizer(config.optimizer)

    def start():
        key = start_key(config.train.seed)
        return init_state(make_model(config.model, job.tokenizer.vocab_size, key), optimizer)

    state = job.run.restore(jax.eval_shape(start), job.saved_step) if job.saved_step else jax.jit(start)()
    job.introduce(sum(leaf.size for leaf in jax.tree.leaves(state.model)))
    if job.saved_step:
        job.say(f"continuing from step {job.saved_step:,}")
    job.run.keep_rows([], after=job.saved_step)

    tokens = jnp.asarray(job.split.train)
    clock = time.perf_counter()
    advance = make_advance(optimizer, config.train.seed, config.train.batch_size, config.model.block_size)
    with job.console.status("compiling"):
        advance = advance.lower(state, tokens, 1).compile()
        losses = job.evaluate(state.model)
    job.say(f"compiled in {duration(time.perf_counter() - clock)}\n")

    step, seconds = job.saved_step, 0.0
    with stop_signals() as stopped, TrainingDisplay(job.console, job.saved_step, steps) as display:
        for done in dispatches(advance, state, tokens, steps, config.train.eval_interval, config.checkpoint.interval):
            step, last = done.step, done.step == steps
            seconds += done.seconds
            rows = [
                {"step": step - len(done.losses) + 1 + index, "train_loss": float(loss)}
                for index, loss in enumerate(done.losses)
            ]
            display.advance(step, rows[-1]["train_loss"], len(rows) * batch_tokens / done.seconds)
            if last or step % config.train.eval_interval == 0:
                losses = job.evaluate(done.state.model)
                rows[-1] |= {"exact_train_loss": losses["train"], "val_loss": losses["val"]}
                display.evaluated(step, losses["train"], losses["val"], job.floor)
            job.run.keep_rows(rows)
            if last or stopped or step % config.checkpoint.interval == 0:
                job.run.save(done.state, step, config.checkpoint.keep, losses)
            if stopped:
                break
    job.run.wait()
    if stopped and step < steps:
        job.say(f"\nstopped  after step {step:,}; the same command goes on from there")
        return 128 + stopped[0]
    job.conclude(losses, f"{steps - job.saved_step:,} steps in {duration(seconds)}")
    return 0


@contextmanager
def stop_signals():
    """A list that receives SIGINT or SIGTERM when it comes; a second SIGINT interrupts at once."""
    received: list[int] = []

    def handle(number, frame):
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
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
    if job.saved_step >= (1 if by_counting else config.train.steps):
        job.say(f"{config.run_dir} is trained already, to step {job.saved_step:,}.")
        more = "" if by_counting else f"train.steps={2 * job.saved_step} goes on, "
        job.say(f"{more}overwrite=true starts anew; or: python -m babyjax.sample run_dir={shlex.quote(config.run_dir)}")
        return 0
    return train_by_counting(job) if by_counting else train_by_gradient(job)


if __name__ == "__main__":
    run_door(main, help_text)

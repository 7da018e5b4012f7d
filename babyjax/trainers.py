"""The ways to train, as the `train` door runs them: counting, gradient steps, and the exact loss from counts."""

import time
from contextlib import ExitStack
from typing import Any

from rich.console import Console

from babyjax.config import BabyGPTConfig, BigramConfig, Config, CountsConfig
from babyjax.door import command_line
from babyjax.errors import ConfigError, RunError
from babyjax.progress import CountsDisplay, TrainingDisplay, duration, say

# A fit on counts whose steps are long is saved after so many seconds, too.
SAVE_SECONDS = 60


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
        self.pairs = PairCounts.from_split(self.split, self.tokenizer.vocab_size)
        self.floor = self.pairs.bigram_floor("train")
        self.evaluator = ExactEvaluator(self.pairs, self.tokenizer.byte_lengths)

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

    def conclude(self, losses: dict[str, float], *lines: str) -> None:
        self.say(
            f"\nreached  train {losses['train']:.4f} ({losses['train'] - self.floor:+.4f} to the floor), "
            f"val {losses['val']:.4f} nats per token"
        )
        for line in lines:
            self.say(line)
        self.say(f"kept in  {self.config.run_dir}")
        self.say(f"next     {command_line('sample', f'run_dir={self.config.run_dir}')}")

    def already_trained(self, step: int, more: str = "") -> None:
        self.say(f"{self.config.run_dir} is trained already, to step {step:,}.")
        sample = command_line("sample", f"run_dir={self.config.run_dir}")
        self.say(f"{more}overwrite=true starts anew; or: {sample}")

    def was_interrupted(self, step: int, argv: list[str]) -> None:
        arguments = [argument for argument in argv if argument.partition("=")[0] != "overwrite"]
        self.say(f"\nstopped  after step {step:,}; it is saved")
        self.say(f"next     {command_line('train', *arguments)}")

    def account(self, model: Any, stopped: list[int]) -> None:
        """Say where the loss of the finished run goes, and keep that."""
        from babyjax.training.ledger import draw_up_ledger

        with self.console.status("finding the best network of this width, for the ledger; Ctrl-C to do without"):
            ledger = draw_up_ledger(self.pairs, model, self.evaluator(model), stopped)
        if ledger is None:
            self.say("\nthe run is complete, but for the ledger; the same command draws it up")
            return
        self.run.add_ledger(ledger._asdict())
        train = ledger.entropy + ledger.approximation + ledger.optimisation
        width = getattr(self.config.model, "n_embd", 0)
        included = ", smoothing and penalty included" if isinstance(self.config.trainer, CountsConfig) else ""
        self.say("\nwhere the loss goes, nats per token")
        for sign, nats, what in (
            (" ", ledger.entropy, "entropy: the floor of any model of the previous token"),
            ("+", ledger.approximation, f"approximation: the best with n_embd={width} ({ledger.best})"),
            ("+", ledger.optimisation, f"optimisation: this run above that best{included}"),
            ("=", train, "train"),
            ("+", ledger.generalisation, "generalisation"),
            ("=", train + ledger.generalisation, "val"),
        ):
            self.say(f"  {sign} {nats:7.4f}  {what}")

    def complete_ledger(self, stopped: list[int]) -> None:
        """The ledger of a run that was stopped while it was drawn up."""
        from babyjax.training.run import load_run

        if not self.run.has_ledger():
            run = load_run(self.run.path)
            self.account(run.model, stopped)


def train_by_counting(job: Job, first_step: int) -> None:
    """The count bigram: one pass over the corpus, or the seed's random windows; a single step."""
    if first_step:
        job.already_trained(first_step)
        return
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
    pairs = int(np.asarray(counts).sum(dtype=np.int64))
    job.conclude(losses, f"took     {duration(seconds)} to count {pairs:,} pairs")


def train_by_gradient(job: Job, first_step: int, stopped: list[int], argv: list[str]) -> None:
    """AdamW on random windows, from `first_step` until `train.steps` or until `stopped` holds a signal."""
    if first_step >= job.config.train.steps:
        job.already_trained(first_step, f"train.steps={2 * first_step} goes on, ")
        job.complete_ledger(stopped)
        return
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
            state = done.state
            display.advance(step, rows[-1]["train_loss"], len(rows) * batch_size * block_size / done.seconds)
            evaluated = step == steps or step % eval_interval == 0
            if evaluated:
                losses = job.evaluate(state.model)
                rows[-1] |= {"exact_train_loss": losses["train"], "val_loss": losses["val"]}
                display.evaluated(step, losses["train"], losses["val"], job.floor)
            job.run.add_rows(rows)
            if step == steps or stopped or step % config.checkpoint.interval == 0:
                job.save(state, step, losses if evaluated else {})
            if stopped:
                break
    if step < steps:
        job.was_interrupted(step, argv)
        return
    job.conclude(losses, f"took     {duration(seconds)} for {steps - first_step:,} steps")
    job.account(state.model, stopped)


def train_by_solving(job: Job, first_step: int, stopped: list[int], argv: list[str]) -> None:
    """The exact loss, from counts, to a tolerance; from `first_step` until done or until `stopped` holds a signal."""
    import jax

    from babyjax.training.counts import CountsProblem, legs_of, legs_to_choose
    from babyjax.training.devices import require_memory
    from babyjax.training.run import check_own_corpus, check_own_files
    from babyjax.training.step import TrainState

    model, trainer, seed = job.config.model, job.config.trainer, job.config.train.seed
    assert isinstance(model, BabyGPTConfig)
    assert isinstance(trainer, CountsConfig)
    vocab_size = job.tokenizer.vocab_size
    smoothing = 1 / vocab_size if trainer.smoothing is None else trainer.smoothing
    choosing = trainer.choose != "nothing"
    if (trainer.choose == "smoothing" and trainer.smoothing is not None) or (
        trainer.choose == "penalty" and trainer.penalty
    ):
        raise ConfigError(f"trainer.choose={trainer.choose} and trainer.{trainer.choose}= cannot both be given")
    problem = CountsProblem(
        job.pairs,
        model.n_embd,
        legs_to_choose(trainer.choose, trainer.starts, seed, smoothing, trainer.penalty)
        if choosing
        else legs_of(trainer.starts, seed, smoothing, trainer.penalty),
        bias=model.bias,
        tolerance=trainer.tolerance,
        score=(lambda network: job.evaluate(network)["val"]) if choosing else None,
    )
    parameters = 2 * vocab_size * model.n_embd + vocab_size * model.bias
    job.introduce(parameters, jax.devices()[0].device_kind)
    require_memory(4 * parameters, f"a model of {parameters:,} parameters")
    fit = problem.start()
    if first_step:
        saved = job.run.checkpoints.load(first_step)
        check_own_files(saved.about, job.config, job.tokenizer, job.run)
        check_own_corpus(saved.about, job.corpus, job.run)
        fit = saved.fill(fit, "opt_state")
        if problem.done(fit):
            job.already_trained(first_step)
            job.complete_ledger(stopped)
            return
        job.run.rewind(job.config, first_step)
        job.say(f"continuing from step {first_step:,}")
    else:
        job.create()

    def save(step: int, losses: dict[str, float]) -> None:
        job.save(TrainState(jax.numpy.int32(step), problem.model(fit), fit), step, losses)

    if not problem.second_order and trainer.starts > 1:
        job.say("the vocabulary is large: one start, from the SVD, in sweeps")
    network = problem.model(fit)
    step, start, losses = first_step, time.perf_counter(), job.evaluate(network)
    saved_at = start
    with ExitStack() as finally_, CountsDisplay(job.console, job.floor) as display:
        finally_.callback(job.run.checkpoints.wait)
        while not problem.done(fit):
            leg, before = problem.legs[int(fit.leg)], fit
            fit = problem.advance(fit)
            step += 1
            ended = fit.leg != before.leg
            if ended or fit.made == 0:  # from the second descent on, the best network changes only when one ends
                network = problem.model(fit)
                losses = job.evaluate(network)
            row = {"step": step, "train_loss": losses["train"], "val_loss": losses["val"]}
            job.run.add_rows([row | leg._asdict() | {"objective": problem.objective}])
            display.step(step, losses["train"], losses["val"], problem.progress(), bool(ended))
            due = step % job.config.checkpoint.interval == 0 or time.perf_counter() - saved_at > SAVE_SECONDS
            if problem.done(fit) or stopped or due:
                save(step, losses)
                saved_at = time.perf_counter()
            if stopped:
                break
    if not problem.done(fit):
        job.was_interrupted(step, argv)
        return
    chosen = problem.legs[int(fit.best_leg)]
    lines = [f"known    {problem.quality(fit)}"]
    if choosing:
        lines.append(f"chosen   {trainer.choose}={getattr(chosen, trainer.choose):g}, by validation")
    if chosen.smoothing:
        smoothed = job.pairs.add_k_loss("train", chosen.smoothing)
        lines.append(
            f"smoothed by {chosen.smoothing:.3g} a cell: the bigram so smoothed has {smoothed:.4f} on train, "
            f"{job.pairs.add_k_loss('val', chosen.smoothing):.4f} on val"
        )
    seconds = duration(time.perf_counter() - start)
    job.conclude(
        losses, *lines, f"took     {seconds} for {step - first_step:,} steps on the counts, compilation included"
    )
    job.account(network, stopped)

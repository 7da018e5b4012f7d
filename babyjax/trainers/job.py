"""What every way of training needs."""

from typing import Any

from rich.console import Console

from babyjax.door import command_line
from babyjax.errors import RunError
from babyjax.progress import say
from babyjax.schema import BigramConfig, Config, CountsConfig, DataConfig


def corpus_of(data: DataConfig) -> Any:
    """The corpus that the options of `data` name. Raises `DataError` where it cannot be had."""
    from babyjax.data.corpus import load_corpus, read_corpus

    if data.path is not None:
        return read_corpus(data.path)
    options = {key: value for key, value in vars(data).items() if key not in ("name", "path", "tokenizer")}
    return load_corpus(data.name, **options)


class Job:
    """What every way of training needs: the run directory, the tokens, the shape of the model, evaluation."""

    def __init__(self, config: Config, console: Console):
        import jax

        from babyjax.data.batches import split_tokens
        from babyjax.data.tokenizer import TOKENIZERS
        from babyjax.models import make_model
        from babyjax.training.evaluation import ContextEvaluator
        from babyjax.training.run import RunDirectory, describe
        from babyjax.training.statistics import ExactEvaluator, PairCounts

        self.config, self.console = config, console
        self.run = RunDirectory(config.run_dir)
        self.run.exists()
        self.corpus = corpus_of(config.data)
        self.tokenizer = TOKENIZERS[config.data.tokenizer].fit(self.corpus.text)
        self.split = split_tokens(self.tokenizer.encode(self.corpus.text), config.model.block_size)
        self.about = describe(config, self.tokenizer, self.corpus)
        self.pairs = PairCounts.from_split(self.split, self.tokenizer.vocab_size)
        self.floor = self.pairs.bigram_floor("train")
        self.shape: Any = jax.eval_shape(lambda: make_model(config.model, self.tokenizer.vocab_size, jax.random.key(0)))
        self.exact = self.shape.receptive_field == 1
        self.evaluator = (
            ExactEvaluator(self.pairs, self.tokenizer.byte_lengths)
            if self.exact
            else ContextEvaluator(
                self.split, self.tokenizer.byte_lengths, config.model.block_size, tokens=config.train.eval_tokens
            )
        )

        self.evaluated: dict[str, Any] = {}

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
        """Loss of `model` on each split, in nats per token: of a model of the previous token the exact one."""
        self.evaluated = self.evaluator(model)
        return {name: loss.per_token for name, loss in self.evaluated.items()}

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

"""What is measured: every figure, its sides and its size."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments.speed.workers import Side

OURS, THEIRS = "experiments.speed.ours", "experiments.speed.theirs"
# Small enough to try every figure in seconds.
TINY = {"n_embd": 8, "n_head": 2, "n_layer": 1, "block_size": 16}


class Text(NamedTuple):
    """A text file and the size of its vocabulary."""

    path: str
    vocab_size: int

    @property
    def title(self) -> str:
        return f"{Path(self.path).stem} (V = {self.vocab_size:,})"

    @property
    def is_small(self) -> bool:
        return self.vocab_size < 1000


class Figure(NamedTuple):
    """One comparison. The first side is ours; a round of each is `work` units, shown in `unit`."""

    part: str
    title: str
    sides: list[Side]
    rounds: int
    unit: str = "ms"
    work: int = 1
    target: float | None = None  # the least ratio to the other side


class Plan(NamedTuple):
    """What to measure with: the texts, the device, and whether sizes are tiny."""

    texts: list[Text]
    gpu: bool
    quick: bool

    def figures(self) -> Iterator[Figure]:
        """Every figure, in the order of the report."""
        for text in self.texts:
            yield self.v1(text)
        yield from self.gpt()
        yield from self.sampling()
        for text in self.texts:
            yield from self.counting(text)
        yield from self.commands()
        for text in self.texts:
            yield from self.fits(text)
        yield from self.synthetic()
        yield from self.runs()

    def rounds(self, full: int) -> int:
        return 1 if self.quick else full

    def v1(self, text: Text) -> Figure:
        steps = 5 if self.quick else 500 if text.is_small else 60
        arguments = {"options": ["model=babygpt", f"data.path={text.path}"], "steps": steps}
        return Figure(
            "v1",
            f"training v1, {text.title}",
            [Side(OURS, "training", arguments), Side(THEIRS, "training_v1", arguments, "PyTorch eager")],
            self.rounds(9 if text.is_small else 7),
            "steps/s",
            steps,
            10.0 if text.is_small else 2.0,
        )

    def gpt(self) -> Iterator[Figure]:
        """Recipes for a laptop in float32 on the first text; on a GPU larger networks in bfloat16 on the last."""
        text = self.texts[-1 if self.gpu else 0]
        tiny = [f"model.{key}={value}" for key, value in TINY.items()] if self.quick else []
        recipes = [["model=gpt-tiny-2019"], ["model=llama-tiny"], ["model=gpt-tiny"]]
        if self.gpu:
            recipes = [["model=babygpt-v12", "model.dtype=bfloat16"], ["model=gpt2", "train.batch_size=32"]]
            recipes += [["model=smollm2-135m", "train.batch_size=16"]]
        steps = 2 if self.quick else 10
        for options in recipes:
            arguments = {"options": [*options, *tiny, f"data.path={text.path}"], "steps": steps}
            peer = "PyTorch compiled, bfloat16" if self.gpu else "PyTorch eager"
            yield Figure(
                "gpt",
                f"training {' '.join(options)}, {text.title}",
                [Side(OURS, "training", arguments), Side(THEIRS, "training_gpt", arguments, peer)],
                self.rounds(15),
                "ms/step",
                steps,
                None if self.gpu else 1.25,
            )

    def sampling(self) -> Iterator[Figure]:
        """With a cache beside PyTorch with one, and beside ourselves without."""
        sizes = [(name, 65, batch, 63, True) for name in ("gpt-tiny-2019", "llama-tiny") for batch in (1, 16)]
        sizes += [("babygpt-v12", 6104, 1, 128, True), ("babygpt-v12", 6104, 16, 128, True)]
        sizes += [("babygpt-v12", 65, 1, 256, False)]
        if self.quick:
            sizes = [("gpt-tiny", 5, 1, 15, True), ("gpt-tiny", 5, 1, 15, False)]
        for model, vocab_size, batch, length, beside_pytorch in sizes:
            changes = TINY if self.quick else {}
            arguments = {"model": model, "changes": changes, "vocab_size": vocab_size, "batch": batch, "length": length}
            if beside_pytorch:
                other = Side(THEIRS, "sampling", arguments, "PyTorch with a cache")
            else:
                other = Side(OURS, "sampling", arguments | {"cached": False}, "babyjax without a cache")
            yield Figure(
                "sampling",
                f"sampling from {model}, V = {vocab_size:,}, batch {batch}, length {length}",
                [Side(OURS, "sampling", arguments), other],
                self.rounds(9 if vocab_size == 65 and length == 63 else 5),
                "ms/token",
                length,
            )

    def counting(self, text: Text) -> Iterator[Figure]:
        path = {"path": text.path}
        yield Figure(
            "counting",
            f"counting token ids, {text.title}",
            [Side(OURS, "counting", path), Side(THEIRS, "counting", path, "np.bincount")],
            self.rounds(50 if text.is_small else 10),
        )
        yield self.ours("counting", f"file to counts with compilation, {text.title}", "file_to_counts", path, 5)
        title = f"exact evaluation of v1 on both splits, {text.title}"
        yield self.ours("evaluation", title, "evaluation", path, 50 if text.is_small else 5, "ms")

    def commands(self) -> Iterator[Figure]:
        train = ["train", "model=babygpt", "train.steps=8", "train.eval_interval=1", "overwrite=true"]
        helped = {"arguments": ["train", "--help"], "until": "usage"}
        first_step = {"arguments": train, "until": "1 "}
        yield self.ours("commands", "`babyjax train --help`", "command", helped, 9)
        title = "from `babyjax train` to the first step, compiled before"
        yield self.ours("commands", title, "command", first_step, 5)
        title = "from `babyjax train` to the first step, not compiled before"
        yield self.ours("commands", title, "command", first_step | {"cold": True}, 5)

    def fits(self, text: Text) -> Iterator[Figure]:
        """Training on counts. AdamW's seconds are those of a tenth of its steps, times ten."""
        steps = 50 if self.quick else 5000
        adamw = {"options": ["model=babygpt", f"data.path={text.path}"], "steps": steps // 10}
        yield Figure(
            "counts",
            f"training on counts to AdamW's loss after {steps:,} steps, {text.title}",
            [
                Side(OURS, "fit", {"path": text.path, "adamw_steps": steps}),
                Side(OURS, "training", adamw, "AdamW, babyjax", repeats=10),
                Side(THEIRS, "training_v1", adamw, "AdamW, PyTorch eager", repeats=10),
            ],
            self.rounds(5),
            "s",
        )
        if not self.quick:
            title = f"training on counts to the default tolerance, {text.title}"
            yield self.ours("counts", title, "fit", {"path": text.path}, 3)

    def synthetic(self) -> Iterator[Figure]:
        for length in (10_000,) if self.quick else (1_000_000, 1_000_000_000):
            arguments = {"length": length}
            yield self.ours("counts", f"counting {length:.0e} synthetic tokens", "synthetic_counting", arguments, 3)
            yield self.ours("counts", f"training on the counts of {length:.0e}", "synthetic_fit", arguments, 3)

    def runs(self) -> Iterator[Figure]:
        """Whole runs by their recipes, once."""
        path = f"data.path={self.texts[0].path}"
        steps = ["train.steps=10"] if self.quick else []
        whole = [(["model=babygpt", *steps], 8)] + (
            [] if self.quick else [(["model=gpt-tiny"], 32), (["model=gpt-small"], 32)]
        )
        for options, stride in whole:
            arguments = {"options": [*options, path], "stride": stride}
            title = f"whole run, {options[0]}, {self.texts[0].title}"
            yield Figure("runs", title, [Side(OURS, "whole_run", arguments)], 0, "s")

    def ours(
        self, part: str, title: str, measure: str, arguments: dict[str, Any], rounds: int, unit: str = "s"
    ) -> Figure:
        """A figure without another side."""
        return Figure(part, title, [Side(OURS, measure, arguments)], self.rounds(rounds), unit)

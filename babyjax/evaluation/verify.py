"""A referee for language models: checks that the numbers of a model can be trusted, whatever it is written in.

It reads the model through one function, from token ids to log-probabilities, and finds the usual errors: distributions
that do not sum to one, predictions that see the token they predict, other rows of the batch or the padding, state kept
between calls, tokens that are skipped, bytes that are miscounted. It cannot find out whether a model was trained on the
text, or knows it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Integer

from babyjax.checks import check_tokens
from babyjax.data.batches import Split
from babyjax.errors import ConfigError, TokenError
from babyjax.evaluation.losses import ContextEvaluator, Nats

# Log-probabilities below this are alike. Log-probabilities held at once, and tokens, unless a window has more.
FLOOR, HELD, READ = -30.0, 1 << 22, 1 << 14
# Windows that are read again with changes, those of a batch that are read alone, and batches that are read twice.
PROBES, ALONE, REPEATS = 32, 4, 16

LogProbs = Float[np.ndarray, "*shape V"]


class Check(NamedTuple):
    """The result of a check: the worst `deviation`, which may be up to `limit`, among what was `examined`.

    `passed` is None if it was not checked; `detail` says why.
    """

    name: str
    passed: bool | None
    deviation: float | None
    limit: float
    examined: int
    detail: str


class Verification(NamedTuple):
    """The checks of a model, and the loss that the referee found. `loss.bytes` is 0 if no byte lengths were given."""

    checks: tuple[Check, ...]
    loss: Nats

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def failed(self) -> list[str]:
        """The names of the checks that failed."""
        return [check.name for check in self.checks if check.passed is False]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, the checks by name."""
        loss = self.loss
        return {
            "passed": self.passed,
            "checks": {check.name: {k: v for k, v in check._asdict().items() if k != "name"} for check in self.checks},
            "nats_per_token": loss.per_token,
            "standard_error": loss.standard_error,
            "bits_per_byte": loss.bits_per_byte if loss.bytes else None,
            "tokens": loss.tokens,
            "bytes": loss.bytes,
        }

    def __str__(self) -> str:
        lines = [f"{'check':13}  {'result':11}  {'worst':>8}  {'limit':>8}  what was checked"]
        for name, passed, deviation, limit, _, detail in self.checks:
            result = {True: "passed", False: "FAILED", None: "not checked"}[passed]
            worst = "-" if deviation is None else f"{deviation:.2g}"
            lines.append(f"{name:13}  {result:11}  {worst:>8}  {limit:8.2g}  {detail}")
        loss, error = self.loss, self.loss.standard_error
        spread = "" if error is None else f" (standard error {error:.4f})"
        size = f", {loss.bits_per_byte:.4f} bits/byte" if loss.bytes else ""
        lines.append(
            f"\nThe referee's own loss: {loss.per_token:.4f} nats/token{spread}{size}, {loss.tokens:,} tokens."
        )
        lines.append("No check can tell whether the model was trained on this text.")
        if "deterministic" in self.failed:
            lines.append("Since it is not deterministic, other checks that compare two calls may fail too.")
        return "\n".join(lines)


class _Model:
    """A callable whose answers are arrays of the right shape, in float64. `vocab_size` is that of the first answer."""

    def __init__(self, call: Callable[[Int[np.ndarray, "B T"]], Any], ids: int, *, logits: bool):
        self.call, self.ids, self.logits = call, ids, logits
        self.vocab_size = 0

    def __call__(self, tokens: Int[np.ndarray, "B T"]) -> tuple[LogProbs, Float[np.ndarray, "B T"]]:
        """Return log-probabilities and, by position, the logarithm of their sum, NaN if it cannot be made 0."""
        return self.checked(self.call(np.array(tokens, np.int32)), tokens.shape)

    def checked(self, answer: Any, shape: tuple[int, ...]) -> tuple[LogProbs, Float[np.ndarray, "B T"]]:
        """Return what a call returns for an answer of the callable. Raises: ConfigError if its shape is wrong."""
        if hasattr(answer, "detach"):  # a PyTorch tensor; NumPy does not have its bfloat16
            answer = answer.detach().cpu().double()
        try:
            values = np.asarray(answer, np.float64)
        except (TypeError, ValueError):
            raise ConfigError(f"log_probs must return one array, [B, T, V], got {type(answer).__name__}") from None
        if values.ndim != 3 or values.shape[:2] != shape:
            raise ConfigError(f"log_probs must return [{shape[0]}, {shape[1]}, V], got shape {list(values.shape)}")
        if values.shape[2] < self.ids:
            raise ConfigError(f"log_probs predicts {values.shape[2]:,} tokens, but the text has id {self.ids - 1:,}")
        if self.vocab_size not in (0, values.shape[2]):
            raise ConfigError(f"log_probs predicts {values.shape[2]:,} tokens, but {self.vocab_size:,} at first")
        self.vocab_size = values.shape[2]
        top = values.max(axis=-1, keepdims=True)
        top[~np.isfinite(top)] = 0
        with np.errstate(all="ignore"):
            total = top + np.log(np.exp(values - top).sum(axis=-1, keepdims=True))
            if self.logits:
                values = values - total
                total = np.where(np.isfinite(total), 0.0, np.nan)
        return values, total[..., 0]


class _Worst:
    """The largest difference between two computations of the same predictions."""

    def __init__(self):
        self.deviation, self.examined = 0.0, 0

    def add(self, ours: LogProbs, theirs: LogProbs) -> None:
        """Compare predictions."""
        self.deviation = max(self.deviation, float(_difference(ours, theirs).max(initial=0)))
        self.examined += ours.size // ours.shape[-1]

    def check(self, name: str, limit: float, detail: str, skip: str = "") -> Check:
        """Return the check that nothing differs by more than `limit`, or was not checked because of `skip`."""
        if skip:
            return Check(name, None, None, limit, 0, skip)
        passed = self.deviation <= limit
        return Check(name, passed, self.deviation, limit, self.examined, f"{self.examined:,} {detail}")


def _difference(ours: Float[np.ndarray, "*shape"], theirs: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Return how far log-probabilities, or losses, are apart, infinity if only one of them is NaN."""
    gap = np.abs(np.clip(ours, FLOOR, -FLOOR) - np.clip(theirs, FLOOR, -FLOOR))
    return np.where(np.isnan(gap), np.where(np.isnan(ours) & np.isnan(theirs), 0.0, np.inf), gap)


def _nats(log_probs: LogProbs, window: Int[np.ndarray, "B _"]) -> Float[np.ndarray, "B T"]:
    return -np.take_along_axis(log_probs, window[:, 1:, None].astype(np.int64), axis=-1)[..., 0]


def verify(
    log_probs: Callable[[Int[np.ndarray, "B T"]], Any],
    tokens: Integer[np.ndarray, "*shape"],
    *,
    block_size: int,
    stride: int | None = None,
    logits: bool = False,
    byte_lengths: Integer[np.ndarray, " V"] | None = None,
    text: str | bytes | int | None = None,
    nats: Float[np.ndarray, " T"] | None = None,
    tolerance: float = 1e-3,
    seed: int = 0,
    one_shape: bool = False,
    progress: Callable[[float], None] = lambda share: None,
) -> Verification:
    """Check that the predictions of a language model are probabilities of the next token given those before it.

    Args:
      log_probs: the model, from `int32[B, T]` to natural logarithms of probabilities, `[B, T, V]`, as a JAX or NumPy
        array or a PyTorch tensor. Those at position t are for token t + 1, given the tokens up to t. For PyTorch:
        `lambda x: model(torch.from_numpy(x).long()).log_softmax(-1)`.
      tokens: the ids of the text, `int[L]`. All but the first are scored.
      block_size: tokens in a window, the longest text that `log_probs` is given.
      stride: tokens between windows, as in `ContextEvaluator`; `block_size` if None.
      logits: whether `log_probs` returns logits, which the referee then normalizes.
      byte_lengths: the UTF-8 length of every token id.
      text: what `tokens` encodes, or how many bytes that is as UTF-8.
      nats: the losses to verify, of every token but the first in the same windows.
      tolerance: the largest difference of two log-probabilities that counts as rounding, in nats.
      seed: seed of the changes that are tried.
      one_shape: whether to call `log_probs` with one shape only, so that it is compiled once. Rows alone and shorter
        texts are then left out.
      progress: called with the share that is done.

    Raises: ConfigError if an argument or the shape of an answer is wrong, TokenError if `tokens` cannot be scored.
    """
    if block_size < 1:
        raise ConfigError(f"block_size={block_size} must be at least 1")
    if not tolerance >= 0:
        raise ConfigError(f"tolerance={tolerance} must be at least 0")
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or len(tokens) < 2:
        raise TokenError(f"tokens must be one text of at least 2 tokens, got shape {list(tokens.shape)}")
    check_tokens(tokens, (1 << 31) - 1 if byte_lengths is None else len(byte_lengths))
    tokens = tokens.astype(np.int64)
    ids, rng = int(tokens.max()) + 1, np.random.default_rng(seed)
    sizes = np.ones(ids, np.int64) if byte_lengths is None else byte_lengths
    windows = ContextEvaluator(Split(tokens, tokens), sizes, block_size, stride)
    starts, places = windows.starts(len(tokens)), np.arange(block_size)
    model = _Model(log_probs, ids, logits=logits)
    if not one_shape:  # tells the size of its vocabulary
        model(next(windows.chunks(tokens, starts[:1], 1))[0][:, :-1])
    vocab_size = model.vocab_size or max(ids, len(sizes))
    rows = max(2, min(HELD // (block_size * vocab_size), READ // block_size, len(starts)))
    batches = [starts[first : first + rows] for first in range(0, len(starts), rows)]
    rounds = -(-min(PROBES, len(starts)) // rows)
    steps = len(batches) + rounds + 1

    def score(batch: Int[np.ndarray, " K"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        window, scored = next(windows.chunks(tokens, batch, rows))
        predicted, total = model(window[:, :-1])
        return (np.resize(batch, (rows, 1)) + places)[scored], _nats(predicted, window)[scored], total[scored]

    ours, totals = np.full((2, len(tokens) - 1), np.nan)
    times = np.zeros(len(tokens) - 1, np.int64)
    for index, batch in enumerate(batches):
        place, ours[place], totals[place] = score(batch)
        times[place] += 1
        progress((index + 1) / steps)

    causal, alone, length, again = (_Worst() for _ in range(4))
    lengths = [] if one_shape else sorted({1, block_size // 2, block_size - 1} & set(range(1, block_size)))
    refused, aside, shorter = "", "" if one_shape else "alone, ", "" if one_shape else " and with none"
    probes = starts[np.linspace(0, len(starts) - 1, rounds * rows).round().astype(np.int64)]
    cuts = np.resize(rng.permutation(min(block_size, len(tokens) - 1) - 1), len(probes))
    for index, first in enumerate(range(0, len(probes), rows)):
        start, cut = probes[first : first + rows, None], cuts[first : first + rows, None]
        window, scored = next(windows.chunks(tokens, start[:, 0], rows))
        read, later = window[:, :-1], places > cut
        base, _ = model(read)
        other = (read + rng.integers(1, max(ids, 2), read.shape)) % ids  # another id in every place, if there are two
        elsewhere = tokens[(rng.integers(len(tokens), size=(rows, 1)) + places) % len(tokens)]

        for which, new in ((places == cut + 1, other), (later, other), (later, elsewhere)):
            causal.add(model(np.where(which, new, read))[0][~later], base[~later])

        alone.add(_nats(base, window)[scored, None], ours[(start + places)[scored], None])
        for row in [] if one_shape else rng.choice(rows, min(rows, ALONE), replace=False):
            alone.add(model(read[row : row + 1])[0][0], base[row])
        order = np.roll(np.arange(rows), rng.integers(1, rows))  # every row in another place
        for parity in (0, 1):  # and every second row a stranger
            mixed = np.where(np.arange(rows)[:, None] % 2 == parity, other, read)[order]
            kept = order % 2 != parity
            alone.add(model(mixed)[0][kept], base[order[kept]])

        for filler in (0, ids - 1, rng.integers(ids, size=read.shape)):
            length.add(model(np.where(later, filler, read))[0][~later], base[~later])
        for size in lengths:
            try:
                answer = log_probs(np.array(read[:, :size], np.int32))
            except Exception as error:  # of whatever kind the callable raises
                refused = f"; it cannot read {size} alone ({type(error).__name__})"
            else:
                length.add(model.checked(answer, (rows, size))[0], base[:, :size])
        progress((len(batches) + index + 1) / steps)

    for index in np.unique(np.linspace(0, len(batches) - 1, REPEATS).round().astype(np.int64))[::-1]:
        place, found, _ = score(batches[index])
        again.add(found[:, None], ours[place, None])
    progress(1.0)

    single = "a window of one token has none after it" if block_size == 1 else ""
    checks = (
        _normalized(totals, tolerance, logits=logits),
        causal.check(
            "causal", tolerance, "predictions with later tokens replaced: the next, all, by other text", single
        ),
        alone.check("batch", tolerance, f"predictions {aside}beside other rows and in other places of the batch"),
        length.check("length", tolerance, f"predictions with 3 paddings on the right{shorter}{refused}", single),
        again.check("deterministic", tolerance, "tokens scored again after all other calls, in another order"),
        _coverage(times),
        _claimed(nats, ours, tolerance),
        _bytes(tokens, byte_lengths, text),
    )
    return Verification(
        checks, Nats.of_tokens(ours, 0 if byte_lengths is None else int(byte_lengths[tokens[1:]].sum()))
    )


def _normalized(totals: Float[np.ndarray, " T"], limit: float, *, logits: bool) -> Check:
    """Check that every scored row sums to one. A sum of at most one has no log-probability above 0."""
    off = _difference(totals, np.zeros_like(totals))
    worst, bad = float(off.max()), int((off > limit).sum())
    what = "no NaN or +inf; normalized by the referee" if logits else "log of the sum of all probabilities"
    detail = f"{len(totals):,} scored rows: {what}"
    if bad:
        detail += f"; {bad:,} are wrong, the worst for token {int(off.argmax()) + 1:,}"
    if bad == len(totals) and not logits:
        detail += "; are these logits? then pass logits=True"
    return Check("normalized", not bad, worst, limit, len(totals), detail)


def _coverage(times: Int[np.ndarray, " T"]) -> Check:
    """Check that every token was scored once."""
    wrong = int((times != 1).sum())
    detail = f"{len(times):,} tokens after the first, each scored once" + (f" but for {wrong:,}" if wrong else "")
    return Check("coverage", not wrong, float(wrong), 0.0, len(times), detail)


def _claimed(nats: Float[np.ndarray, " T"] | None, ours: Float[np.ndarray, " S"], limit: float) -> Check:
    """Check the losses that are claimed."""
    name = "losses"
    if nats is None:
        return Check(name, None, None, limit, 0, "give nats=, the loss of every token but the first")
    if len(nats) != len(ours):
        detail = f"{len(nats):,} losses are claimed for {len(ours):,} tokens"
        return Check(name, False, np.inf, limit, len(nats), detail)
    off = _difference(np.asarray(nats, np.float64), ours)
    worst, index = float(off.max()), int(off.argmax())
    detail = f"{len(nats):,} losses, mean {nats.mean():.4f}, the referee's {ours.mean():.4f}"
    if worst > limit:
        detail += f"; token {index + 1:,}: {nats[index]:.4f}, the referee's {ours[index]:.4f}"
    return Check(name, worst <= limit, worst, limit, len(nats), detail)


def _bytes(
    tokens: Integer[np.ndarray, " L"], byte_lengths: Integer[np.ndarray, " V"] | None, text: str | bytes | int | None
) -> Check:
    """Check that the tokens have the bytes of the text."""
    if byte_lengths is None or text is None:
        missing = " and ".join(
            key for key, given in (("text=", text), ("byte_lengths=", byte_lengths)) if given is None
        )
        return Check("bytes", None, None, 0.0, 0, f"give {missing}")
    text = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    size = text if isinstance(text, int) else len(text)
    counted = int(byte_lengths[tokens].sum())
    detail = f"{counted:,} bytes of {len(tokens):,} tokens, {size:,} in the text"
    return Check("bytes", counted == size, float(abs(counted - size)), 0.0, len(tokens), detail)

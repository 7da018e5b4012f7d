"""Every way to a wrong loss is caught by the check that is meant for it; honest models pass all of them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ladder import filled, mostly_slow, small

import babyjax
from babyjax import Bigram, CharTokenizer, ContextEvaluator, Split, estimate_ngram, verify
from babyjax.errors import ConfigError, TokenError
from babyjax.evaluation import evaluator

V, BLOCK = 6, 8
RNG = np.random.default_rng(0)
PAIRS = np.log(RNG.dirichlet(np.ones(V), V))
TRIPLES = np.log(RNG.dirichlet(np.ones(V), (V, V)))
TOKENS = RNG.integers(0, V, 400).astype(np.int32)
NATS = -PAIRS[TOKENS[:-1], TOKENS[1:]]
ALL = ("normalized", "causal", "batch", "length", "deterministic", "coverage", "losses", "bytes")


def before(x):
    """The token before each, 0 at the start."""
    return np.pad(x[:, :-1], ((0, 0), (1, 0)))


def after(x):
    """The token after each, 0 at the end."""
    return np.pad(x[:, 1:], ((0, 0), (0, 1)))


def normalized(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def one_hot(x):
    return np.eye(V)[x]


def trigram(x):
    return TRIPLES[before(x), x]


def unnormalized_in_one_context():
    return lambda x: PAIRS[x] + 0.002 * ((x == 3) & (before(x) == 5))[..., None]


def nan_in_one_context():
    return lambda x: np.where(((x == 3) & (before(x) == 5))[..., None], np.nan, PAIRS[x])


def infinite():
    return lambda x: PAIRS[x] + np.where(x == 3, np.inf, 0)[..., None]


def impossible():
    return lambda x: PAIRS[x] - np.where(x == 3, np.inf, 0)[..., None]


def sees_the_next_token():
    return lambda x: normalized(PAIRS[x] + 0.1 * one_hot(after(x)))


def sees_two_ahead():
    return lambda x: normalized(PAIRS[x] + 0.1 * one_hot(after(after(x))))


def sees_the_last_token():
    return lambda x: normalized(PAIRS[x] + 0.1 * one_hot(x[:, -1:]))


def averages_the_window():
    return lambda x: normalized(PAIRS[x] + one_hot(x).mean(axis=1, keepdims=True))


def normalizes_the_batch():
    return lambda x: normalized(PAIRS[x] - 0.1 * PAIRS[x].mean(axis=0))


def continues_in_the_next_row():
    """Consecutive windows lie one below the other, so the target of the last position is below on the left."""
    last = (np.arange(BLOCK) == BLOCK - 1)[:, None]
    return lambda x: normalized(PAIRS[x] + 0.1 * one_hot(np.roll(x[:, :1], -1, axis=0)) * last[: x.shape[1]])


def knows_its_place_in_the_batch():
    return lambda x: normalized(PAIRS[x] * (1 + 0.01 * np.arange(len(x))[:, None, None]))


def one_row_sees_another():
    """In one place of a batch of 50, which is rarely among the rows that are read alone."""
    return lambda x: normalized(
        PAIRS[x] + 0.1 * one_hot(np.roll(x, -1, axis=0)) * (np.arange(len(x)) == 17)[:, None, None]
    )


def depends_on_the_size_of_the_batch():
    return lambda x: normalized(PAIRS[x] * (1 + 0.01 * len(x)))


def depends_on_the_length():
    return lambda x: normalized(PAIRS[x] * (1 + 0.01 * x.shape[1]))


def counts_padding():
    """As attention whose mask is computed from the padding, id 0 at the end of the text."""
    return lambda x: normalized(PAIRS[x] * (1 + 0.01 * (x[:, -1:] == 0))[..., None])


def drops_out():
    rng = np.random.default_rng(0)
    return lambda x: normalized(PAIRS[x] * (1 + 0.01 * rng.random((*x.shape, 1))))


def learns():
    counts = np.ones((V, V))

    def read(x):
        answer = np.log(counts / counts.sum(axis=1, keepdims=True))[x]
        np.add.at(counts, (x[:, :-1].ravel(), x[:, 1:].ravel()), 0.1)
        return answer

    return read


CHEATS = [
    (unnormalized_in_one_context, "normalized"),
    (nan_in_one_context, "normalized"),
    (infinite, "normalized"),
    (impossible, "normalized"),
    (sees_the_next_token, "causal"),
    (sees_two_ahead, "causal"),
    (sees_the_last_token, "causal"),
    (averages_the_window, "causal"),
    (normalizes_the_batch, "batch"),
    (continues_in_the_next_row, "batch"),
    (knows_its_place_in_the_batch, "batch"),
    (one_row_sees_another, "batch"),
    (depends_on_the_size_of_the_batch, "batch"),
    (depends_on_the_length, "length"),
    (counts_padding, "length"),
    (drops_out, "deterministic"),
    (learns, "deterministic"),
]


def checks_of(*arguments, **options):
    return {check.name: check for check in verify(*arguments, **options).checks}


@pytest.mark.parametrize(("cheat", "name"), CHEATS, ids=[cheat.__name__ for cheat, _ in CHEATS])
def test_a_cheat_is_caught_by_its_check(cheat, name):
    verification = verify(cheat(), TOKENS, block_size=BLOCK)
    assert name in verification.failed
    assert not verification.passed
    if name == "normalized":
        assert verification.failed == ["normalized"]
    check = next(check for check in verification.checks if check.name == name)
    assert check.deviation is not None
    assert check.deviation > check.limit
    assert f"{name:13}  FAILED" in str(verification)


@given(st.integers(0, 99), st.integers(2, 60), st.integers(1, 9), st.data())
def test_an_honest_model_passes_with_any_windows(seed, length, block_size, data):
    tokens = (
        np.random.default_rng(seed)
        .integers(0, V, length)
        .astype(data.draw(st.sampled_from([np.int32, np.int64, np.uint8])))
    )
    stride = data.draw(st.integers(1, block_size))
    nats = -PAIRS[tokens[:-1], tokens[1:]]
    verification = verify(
        lambda x: PAIRS[x],
        tokens,
        block_size=block_size,
        stride=stride,
        byte_lengths=np.arange(1, V + 1),
        text="x" * int((1 + tokens.astype(int)).sum()),
        nats=nats,
        seed=seed,
    )
    assert verification.passed
    assert [check.name for check in verification.checks] == [*ALL]
    unchecked = {check.name for check in verification.checks if check.passed is None}
    assert unchecked == (set() if block_size > 1 else {"causal", "length"})
    assert verification.loss.nats == pytest.approx(nats.sum())
    assert (verification.loss.tokens, verification.loss.bytes) == (length - 1, int((1 + tokens[1:].astype(int)).sum()))


@pytest.mark.parametrize("stride", mostly_slow([None, 3], 3))
def test_the_loss_is_that_of_the_evaluator(stride):
    model = filled(small("babygpt-v2-position"), V)
    windows = ContextEvaluator(Split(TOKENS, TOKENS), np.ones(V, np.int64), BLOCK, stride)
    nats = windows.token_nats(model, "val")
    verification = verify(jax.jit(model), TOKENS, block_size=BLOCK, stride=stride, logits=True, nats=nats)
    assert verification.passed
    assert verification.loss.nats == pytest.approx(nats.sum(), rel=1e-5)


@given(st.integers(0, BLOCK - 2), st.integers(0, 9))
def test_a_leak_at_one_position_is_found(place, seed):
    leak = (np.arange(BLOCK) == place)[:, None]

    def read(x):
        return normalized(PAIRS[x] + 0.1 * one_hot(after(x)) * leak[: x.shape[1]])

    assert "causal" in verify(read, TOKENS, block_size=BLOCK, seed=seed).failed


def test_a_leak_in_a_text_much_shorter_than_a_window_is_found():
    leak = (np.arange(64) < 2)[:, None]

    def read(x):
        return normalized(PAIRS[x] + 0.1 * one_hot(after(x)) * leak[: x.shape[1]])

    assert "causal" in verify(read, TOKENS[:4], block_size=64).failed


def test_logits_are_normalized_by_the_referee_and_only_nan_and_infinity_are_wrong():
    logits = lambda x: PAIRS[x] * 2 + 7  # noqa: E731
    assert verify(logits, TOKENS, block_size=BLOCK, logits=True).passed
    as_probabilities = verify(logits, TOKENS, block_size=BLOCK)
    assert as_probabilities.failed == ["normalized"]
    assert "pass logits=True" in str(as_probabilities)
    assert "pass logits=True" not in str(verify(unnormalized_in_one_context(), TOKENS, block_size=BLOCK))
    for cheat in (nan_in_one_context, infinite, impossible):
        assert verify(cheat(), TOKENS, block_size=BLOCK, logits=True).failed == ["normalized"]


def test_probabilities_of_zero_are_allowed():
    never = np.where(np.arange(V) == TOKENS[5], -np.inf, np.log(1 / (V - 1)))
    verification = verify(lambda x: np.broadcast_to(never, (*x.shape, V)), TOKENS, block_size=BLOCK)
    assert verification.passed
    assert verification.loss.per_token == np.inf
    never[:] = -np.inf
    assert verify(lambda x: np.broadcast_to(never, (*x.shape, V)), TOKENS, block_size=BLOCK).failed == ["normalized"]


def test_a_model_that_reads_only_whole_blocks_is_checked_with_padding():
    def read(x):
        if x.shape[1] != BLOCK:
            raise ValueError("wrong length")
        return trigram(x)

    pads = counts_padding()
    assert checks_of(lambda x: read(x) + pads(x) - PAIRS[x], TOKENS, block_size=BLOCK)["length"].passed is False
    checks = checks_of(read, TOKENS, block_size=BLOCK)
    assert checks["length"].passed
    assert "it cannot read 7 alone (ValueError)" in checks["length"].detail
    assert checks["length"].examined < checks_of(trigram, TOKENS, block_size=BLOCK)["length"].examined


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda nats: nats[nats < 2], "losses are claimed for 399 tokens"),
        (lambda nats: np.append(nats, nats[-8:]), "407 losses are claimed for 399 tokens"),
        (lambda nats: np.roll(nats, 1), "the referee's"),
        (lambda nats: nats - 0.01, "the referee's"),
        (lambda nats: np.where(np.arange(399) == 7, nats - 0.01, nats), "; token 8: "),
        (lambda nats: np.where(np.arange(399) == 7, np.nan, nats), "; token 8: nan"),
        (lambda nats: np.where(np.arange(399) == 7, np.inf, nats), "; token 8: inf"),
    ],
    ids=["skipped", "scored twice", "shifted", "too low", "one too low", "one is NaN", "one is infinite"],
)
def test_losses_that_are_not_those_of_the_model_are_found(change, message):
    verification = verify(lambda x: PAIRS[x], TOKENS, block_size=BLOCK, nats=change(NATS))
    assert verification.failed == ["losses"]
    assert message in str(verification)


def test_losses_of_another_stride_are_found():
    windows = ContextEvaluator(Split(TOKENS, TOKENS), np.ones(V, np.int64), BLOCK, 2)
    nats = np.concatenate(
        [
            -np.take_along_axis(trigram(window[:, :-1]), window[:, 1:, None], axis=-1)[..., 0][scored]
            for window, scored in windows.chunks(TOKENS, windows.starts(400), 4)
        ]
    )
    assert verify(trigram, TOKENS, block_size=BLOCK, stride=2, nats=nats).passed
    assert verify(trigram, TOKENS, block_size=BLOCK, nats=nats).failed == ["losses"]


def test_bytes_are_counted_as_utf8():
    text = "明月几时有?\n" * 20
    tokenizer = CharTokenizer.fit(text)
    tokens = tokenizer.encode(text)
    uniform = lambda x: np.full((*x.shape, tokenizer.vocab_size), -np.log(tokenizer.vocab_size))  # noqa: E731
    for given_text in (text, text.encode()):
        assert verify(uniform, tokens, block_size=BLOCK, byte_lengths=tokenizer.byte_lengths, text=given_text).passed
    characters = np.ones_like(tokenizer.byte_lengths)
    wrong = verify(uniform, tokens, block_size=BLOCK, byte_lengths=characters, text=text)
    assert wrong.failed == ["bytes"]
    assert "140 bytes of 140 tokens, 340 in the text" in str(wrong)


def test_tokens_that_are_skipped_are_noticed(monkeypatch):
    starts = ContextEvaluator.starts
    monkeypatch.setattr(ContextEvaluator, "starts", lambda self, length: starts(self, length)[1:])
    verification = verify(lambda x: PAIRS[x], TOKENS, block_size=BLOCK)
    assert "coverage" in verification.failed
    assert "each scored once but for 8" in str(verification)


def test_a_report_says_what_was_not_checked_and_is_plain_values():
    verification = verify(lambda x: PAIRS[x], TOKENS, block_size=BLOCK)
    report = str(verification)
    assert "losses         not checked" in report
    assert "give nats=" in report
    assert "give text= and byte_lengths=" in report
    assert "bits/byte" not in report
    assert f"{NATS.mean():.4f} nats/token" in report
    result = json.loads(json.dumps(verification.as_dict(), allow_nan=False))
    assert result["passed"] is True
    assert {name: check["passed"] for name, check in result["checks"].items()} == {
        name: None if name in ("losses", "bytes") else True for name in ALL
    }
    assert (result["tokens"], result["bits_per_byte"]) == (399, None)
    some = verify(lambda x: PAIRS[x], TOKENS, block_size=BLOCK, byte_lengths=np.full(V, 2))
    assert "give text=" in str(some)
    assert some.as_dict()["bits_per_byte"] == pytest.approx(NATS.mean() / np.log(2) / 2)


def test_progress_ends_at_one():
    shares = []
    verify(lambda x: PAIRS[x], TOKENS, block_size=BLOCK, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_a_callable_may_change_what_it_is_given():
    def read(x):
        answer = trigram(x.copy())
        x[:] = -1
        return answer

    assert verify(read, TOKENS, block_size=BLOCK).passed


@pytest.mark.parametrize("name", mostly_slow(["bigram", "trigram", "network"], "trigram"))
def test_the_models_of_this_package_pass(name):
    models = {
        "bigram": lambda: Bigram.from_tokens(TOKENS, V),
        "trigram": lambda: estimate_ngram(TOKENS, V, order=3),
        "network": lambda: filled(small("babygpt-v10-dropout"), V),
    }
    model = models[name]()
    nats = ContextEvaluator(Split(TOKENS, TOKENS), np.ones(V, np.int64), BLOCK).token_nats(model, "val")
    read = jax.jit(lambda x: model(x))
    assert verify(read, TOKENS, block_size=BLOCK, logits=name == "network", nats=nats).passed


def test_a_jitted_function_passes_and_one_that_looks_ahead_does_not():
    table = jnp.asarray(PAIRS, jnp.float32)
    assert verify(jax.jit(lambda x: table[x]), TOKENS, block_size=BLOCK, nats=NATS).passed
    cheat = jax.jit(lambda x: jax.nn.log_softmax(table[x] + jnp.roll(jax.nn.one_hot(x, V), -1, axis=1)))
    assert "causal" in verify(cheat, TOKENS, block_size=BLOCK).failed


def test_a_compiled_program_is_asked_in_one_shape_if_so_wished():
    """Then it is called less often, and still caught."""
    table, shapes = jnp.asarray(PAIRS, jnp.float32), set()

    def read(x):
        shapes.add(x.shape)
        return table[x]

    verification = verify(read, TOKENS, block_size=BLOCK, nats=NATS, one_shape=True)
    assert verification.passed
    assert shapes == {(50, BLOCK)}
    found = {check.name: check for check in verification.checks}
    assert "alone" not in found["batch"].detail
    assert "none" not in found["length"].detail
    for cheat, name in CHEATS:
        failed = verify(cheat(), TOKENS, block_size=BLOCK, one_shape=True).failed
        assert (name in failed) == (cheat not in (depends_on_the_size_of_the_batch, depends_on_the_length)), cheat


@pytest.mark.parametrize(("room", "length", "scored"), [(6, 400, 399), (60, 400, 68), (3000, 400, 1), (6, 2, 1)])
def test_a_sample_is_as_large_as_the_vocabulary_of_the_model_allows(monkeypatch, room, length, scored):
    """Whatever the vocabulary of the text, since a prediction has a number for every token the model knows."""
    monkeypatch.setattr(evaluator, "HELD", 4096)
    bigram = Bigram.from_tokens(TOKENS, room)
    verification = evaluator.verify_sample(bigram, Split(TOKENS, TOKENS[:length]), np.ones(V, np.int64))
    assert verification.passed
    assert verification.loss.tokens == scored
    assert {check.name for check in verification.checks if check.passed is None} >= {"bytes"}


def test_a_torch_model_passes():
    torch = pytest.importorskip("torch")
    embedding = torch.nn.Embedding.from_pretrained(torch.from_numpy(PAIRS).float(), freeze=False)
    for kind in (torch.float32, torch.bfloat16):
        logits = lambda x, kind=kind: embedding(torch.from_numpy(x).long()).to(kind)  # noqa: E731
        assert logits(TOKENS[None]).requires_grad
        assert verify(logits, TOKENS, block_size=BLOCK, logits=True).passed
    assert verify(
        lambda x: embedding(torch.from_numpy(x).long()).log_softmax(-1), TOKENS, block_size=BLOCK, nats=NATS
    ).passed


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tokens": TOKENS[:1]}, TokenError, "at least 2 tokens, got shape [1]"),
        ({"tokens": TOKENS.reshape(2, -1)}, TokenError, "got shape [2, 200]"),
        ({"tokens": TOKENS - 1}, TokenError, "token id -1 is outside"),
        ({"byte_lengths": np.ones(V - 1, np.int64)}, TokenError, "token id 5 is outside the vocabulary of 5"),
        ({"block_size": 0}, ConfigError, "block_size=0 must be at least 1"),
        ({"stride": 9}, ConfigError, "stride=9 must lie in"),
        ({"tolerance": -1.0}, ConfigError, "tolerance=-1.0 must be at least 0"),
        ({"tolerance": np.nan}, ConfigError, "tolerance=nan must be at least 0"),
        ({"log_probs": lambda x: x}, ConfigError, "log_probs must return [1, 8, V], got shape [1, 8]"),
        ({"log_probs": lambda x: PAIRS[x][:, -1:]}, ConfigError, "got shape [1, 1, 6]"),
        ({"log_probs": lambda x: None}, ConfigError, "must return [1, 8, V], got shape []"),
        ({"log_probs": lambda x: (PAIRS[x], 0.5)}, ConfigError, "must return one array, [B, T, V], got tuple"),
        ({"log_probs": lambda x: PAIRS[x][..., :5]}, ConfigError, "predicts 5 tokens, but the text has id 5"),
        (
            {"log_probs": lambda x: np.zeros((*x.shape, V + len(x)))},
            ConfigError,
            "log_probs predicts 56 tokens, but 7 at first",
        ),
    ],
)
def test_wrong_use_gets_one_sentence(options, error, message):
    given_options = {"log_probs": lambda x: PAIRS[x], "tokens": TOKENS, "block_size": BLOCK, **options}
    with pytest.raises(error) as raised:
        verify(**given_options)
    assert message in str(raised.value)


def test_names_are_public():
    assert {"verify", "Verification"} <= set(dir(babyjax))

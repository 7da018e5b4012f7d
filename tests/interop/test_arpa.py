"""What is written in ARPA is read back, and by KenLM too; what is read is a distribution."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from babyjax import ByteTokenizer, CharTokenizer, arpa_lines, estimate_ngram, read_arpa
from babyjax.errors import DataError

V = 5
WORDS = ["a", "U+0020", "c", "月", "never"]
TEXT = np.random.default_rng(0).choice(V - 1, 200).astype(np.int32)
rows_of = jax.jit(lambda model, tokens: model(tokens))


def write(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("arpa") / "model.arpa"


@pytest.mark.parametrize("order", [1, 2, 4])
def test_a_model_comes_back(path, order):
    model = estimate_ngram(TEXT, V, order)
    back = read_arpa(write(path, arpa_lines(model, WORDS)), WORDS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), back, model)


def test_a_backoff_weight_above_one_comes_back(path):
    logs = [f"{math.log10(number):.7f}" for number in (0.8, 4.5, 0.2)]  # after a: a 0.1, b 4.5 * 0.2
    lines = ["\\data\\", "ngram 1=2", "ngram 2=1", "\\1-grams:", f"{logs[0]}\ta\t{logs[1]}", f"{logs[2]}\tb"]
    model = read_arpa(write(path, [*lines, "\\2-grams:", "-1\ta a", "\\end\\"]), ["a", "b"])
    np.testing.assert_allclose(np.exp(rows_of(model, jnp.zeros((1, 1), jnp.int32)))[0, 0], [0.1, 0.9], rtol=1e-5)
    back = read_arpa(write(path, arpa_lines(model, ["a", "b"])), ["a", "b"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), back, model)


@given(text=st.text(min_size=1, max_size=50))
def test_texts_can_be_recovered_from_their_words(text):
    for tokenizer in (CharTokenizer.fit(text), ByteTokenizer()):
        try:
            ids = tokenizer.encode(text)
        except ValueError:  # a lone surrogate has no bytes
            continue
        words = " ".join(tokenizer.words[token] for token in ids)
        assert [tokenizer.words.index(word) for word in words.split()] == ids.tolist()
        assert len(set(tokenizer.words)) == tokenizer.vocab_size


HEADER = ["\\data\\", "ngram 1=4", "ngram 2=3", ""]
FOREIGN = [
    *HEADER,
    "\\1-grams:",
    "-99\t<s>\t-0.5",
    "-0.5\t</s>",
    "-0.30103\ta\t-0.2",
    "-0.60206\tb\t-0.1",
    "-1\t<unk>",
    "",
    "\\2-grams:",
    "-0.2\t<s> a",
    "-0.1\ta b",
    "-0.8\tb </s>",
    "",
    "\\end\\",
]


def test_a_foreign_file_is_scaled_to_a_distribution(path):
    model = read_arpa(write(path, FOREIGN), ["a", "b", "z"])
    rows = np.exp(rows_of(model, jnp.array([[0, 1, 2]])))[0]
    np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-6)
    unigrams = np.array([0.5, 0.25, 0.1]) / 0.85  # </s> is left out, z is <unk>
    seen, rest = 10**-0.1, 10**-0.2 * (1 - unigrams[1])
    np.testing.assert_allclose(rows[0, 1], seen / (seen + rest), rtol=1e-5)
    np.testing.assert_allclose(rows[0, [0, 2]], 10**-0.2 * unigrams[[0, 2]] / (seen + rest), rtol=1e-5)
    np.testing.assert_allclose(rows[1:], [unigrams, unigrams], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], r"line 15: the end, \\end\\, is missing"),
        (lambda lines: [], "line 0: the end"),
        (lambda lines: ["\\2-grams:", *lines], "line 1: n-grams of 2 tokens; lengths are 1, 2"),
        (lambda lines: [line.replace("a b", "a b c") for line in lines], "line 13: expected a logarithm, 2 words"),
        (lambda lines: [line.replace("-0.1\ta", "x\ta") for line in lines], "line 13: expected a logarithm"),
        (lambda lines: [line.replace("-0.1\ta", "nan\ta") for line in lines], "line 13: expected a logarithm"),
        (lambda lines: [line.replace("\ta", "\tc") for line in lines], "no probability for 'a', nor for <unk>"),
        (lambda lines: [*lines[:-2], "-0.1\ta b", *lines[-2:]], "the same n-gram of 2 tokens twice"),
        (lambda lines: [line.replace("\ta\t", "\tq\t").replace("\tb\t", "\tr\t") for line in lines], "no word of this"),
    ],
)
def test_what_is_no_arpa_file_gets_one_sentence(path, change, message):
    lines = [line for line in FOREIGN if "<unk>" not in line]
    with pytest.raises(DataError, match=message):
        read_arpa(write(path, change(lines)), ["a", "b"])


def test_an_ngram_without_its_beginning_is_refused(path):
    lines = [*FOREIGN[:-1], "\\3-grams:", "-0.1\tb a b", "\\end\\"]
    with pytest.raises(DataError, match="n-grams that continue 'b a', but not that itself"):
        read_arpa(write(path, lines), ["a", "b"])


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_arpa(tmp_path / "none", WORDS)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not an ARPA file"):
        read_arpa(tmp_path / "binary", WORDS)


def test_kenlm_gives_the_same_log10_probabilities(path):
    kenlm = pytest.importorskip("kenlm")
    model = estimate_ngram(TEXT, V, 4)
    write(path, arpa_lines(model, WORDS))
    scorer, state = kenlm.Model(str(path)), kenlm.State()
    scorer.NullContextWrite(state)
    text, scores = np.random.default_rng(1).choice(V, 100).astype(np.int32), []
    for token in text:
        after = kenlm.State()
        scores.append(scorer.BaseScore(state, WORDS[token], after))
        state = after
    ours = -np.asarray(jax.jit(lambda text: model.nats(text[None]))(text))[0] / math.log(10)
    np.testing.assert_allclose(ours, scores[1:], atol=1e-4)

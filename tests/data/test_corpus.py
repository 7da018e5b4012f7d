import hashlib
import http.client
import io
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest

from babyjax.data import corpus as corpus_module
from babyjax.data.corpus import load_corpus, read_corpus
from babyjax.errors import DataError
from babyjax.models.bigram import count_matrix


def test_pydocs_is_a_long_ascii_text():
    corpus = load_corpus("pydocs")
    assert corpus.text.isascii()
    assert len(corpus.text) > 300_000
    assert corpus.sha256 == hashlib.sha256(corpus.text.encode("ascii")).hexdigest()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\nb\n", "a\nb\n"),
        (b"\xef\xbb\xbfa\r\nb\rc", "a\nb\nc"),
        ("床前明月光".encode(), "床前明月光"),
        (b"\xef\xbb\xbf\xef\xbb\xbfa", "a"),
        (b"\xe6\x98\x8e" * 700_000, "明" * 700_000),  # longer than what is read first, which ends inside a character
    ],
    ids=range(5),
)
def test_files_are_read_as_utf8_with_one_kind_of_line_end(tmp_path, data, text):
    path = tmp_path / "mine.txt"
    path.write_bytes(data)
    assert read_corpus(path).text == text
    assert read_corpus(path).name == "mine"


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"abc\xff", "is not UTF-8 text .byte 3 is 0xff."),
        (b"\x89PNG\r\n\x1a\n\0", "is not UTF-8 text"),
        (b"ab\0c", "is not text: it has a NUL byte at character 2"),
        (b"a" * 2_000_000 + b"\0", "is not text: it has a NUL byte at character 2000000"),
    ],
    ids=range(6),
)
def test_what_is_not_text_is_refused_by_name(tmp_path, monkeypatch, data, complaint):
    monkeypatch.chdir(tmp_path)
    Path("strange.bin").write_bytes(data)
    with pytest.raises(DataError, match=rf"strange\.bin {complaint}"):
        read_corpus("strange.bin")


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("nothing.txt", "cannot read nothing.txt: No such file"),
        (".", r"there is no file with a name ending in .txt"),
        ("a\0b", "cannot read .*null byte"),
        ("\ud800", "cannot read .*surrogates not allowed"),
        ("~nobody-here/x.txt", "cannot read .*home directory"),
        ("a" * 5000, r"cannot read a{60}\.\.\.: File name too long"),
    ],
    ids=range(6),
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, monkeypatch, path, complaint):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=complaint) as caught:
        read_corpus(path)
    assert len(str(caught.value)) < 200


def test_a_path_in_the_home_directory_and_one_that_is_not_utf8(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.txt").write_text("text")
    assert read_corpus("~/mine.txt").text == "text"
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")
    Path(path).write_text("text")
    assert read_corpus(path).text == "text"


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no /dev/fd")
def test_pipes_are_files_too():
    read, write = os.pipe()
    os.write(write, b"ab\r\n" * 1000)
    os.close(write)
    assert read_corpus(f"/dev/fd/{read}").text == "ab\n" * 1000
    os.close(read)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero")
def test_a_file_without_end_is_refused():
    with pytest.raises(DataError, match="is not text: it has a NUL byte at character 0"):
        read_corpus("/dev/zero")


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("bible", {}, "unknown corpus 'bible'"),
        ("pydocs", {"states": 3}, "corpus 'pydocs' has no option 'states'"),
        ("synthetic", {"sates": 3}, "corpus 'synthetic' has no option 'sates'"),
        ("synthetic", {"states": 0}, "states, length and order must be at least 1, got 0, "),
        ("synthetic", {"length": -1}, "states, length and order must be at least 1"),
        ("synthetic", {"order": 0}, "states, length and order must be at least 1"),
        ("synthetic", {"states": 40, "order": 3}, "40 states of order 3 have 64,000 contexts, more than 32,768"),
        ("synthetic", {"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_a_corpus_that_does_not_exist_is_refused(name, options, complaint):
    with pytest.raises(DataError, match=complaint):
        load_corpus(name, **options)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "user_cache", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def shakespeare_server(tmp_path, monkeypatch):
    """A server on this machine that has its own tinyshakespeare; yields (url, served file)."""
    served = tmp_path / "served"
    served.mkdir()
    (served / "input.txt").write_text("To be, or not to be\n")
    digest = hashlib.sha256((served / "input.txt").read_bytes()).hexdigest()
    monkeypatch.setattr(corpus_module, "SHAKESPEARE_SHA256", digest)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/input.txt", served / "input.txt"
    server.shutdown()
    server.server_close()


def test_shakespeare_is_downloaded_once_then_read_from_the_cache(shakespeare_server, cache):
    url, served = shakespeare_server
    first = load_corpus("shakespeare", url=url)
    served.unlink()
    assert load_corpus("shakespeare", url=url) == first
    assert first.text == "To be, or not to be\n"
    assert [path.name for path in cache.iterdir()] == ["tinyshakespeare.txt"]


def test_a_damaged_cache_is_replaced(shakespeare_server, cache):
    cache.mkdir()
    (cache / "tinyshakespeare.txt").write_text("To be, or")
    load_corpus("shakespeare", url=shakespeare_server[0])
    assert (cache / "tinyshakespeare.txt").read_text() == "To be, or not to be\n"


@pytest.mark.parametrize("what", ["no home directory", "a file", "a folder of that name"])
def test_shakespeare_needs_no_cache(shakespeare_server, cache, monkeypatch, what):
    if what == "a file":
        cache.write_text("in the way")
    elif what == "a folder of that name":
        (cache / "tinyshakespeare.txt").mkdir(parents=True)
    else:
        monkeypatch.setattr(corpus_module, "user_cache", lambda: None)
    assert load_corpus("shakespeare", url=shakespeare_server[0]).text == "To be, or not to be\n"


def test_a_download_that_is_something_else_is_refused_and_not_kept(shakespeare_server, cache):
    url, served = shakespeare_server
    served.write_text("an error page")
    with pytest.raises(DataError, match="did not send tinyshakespeare"):
        load_corpus("shakespeare", url=url)
    assert not cache.exists()


def test_a_download_cut_short_says_so(cache, monkeypatch):
    class Cut(io.BytesIO):
        def read(self, *_):
            raise http.client.IncompleteRead(b"To be")

    monkeypatch.setattr(corpus_module.urllib.request, "urlopen", lambda *_, **__: Cut())
    with pytest.raises(DataError, match="cannot download"):
        load_corpus("shakespeare")


def test_offline_says_what_to_do(shakespeare_server, cache):
    url, served = shakespeare_server
    served.unlink()
    with pytest.raises(DataError, match=r"cannot download .*data\.path=FILE, or use data=pydocs"):
        load_corpus("shakespeare", url=url)
    with pytest.raises(DataError, match="cannot download"):
        load_corpus("shakespeare", url="http://127.0.0.1:9/input.txt")


def test_an_unknown_user_without_a_home_directory_has_no_cache():
    program = (
        "import pwd\n"
        "def unknown(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = unknown\n"
        "from babyjax.files import user_cache\n"
        "assert user_cache() is None"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_synthetic_is_seeded_and_its_entropy_is_that_of_its_counts():
    corpus = load_corpus("synthetic", states=5, length=200_000, seed=3)
    assert corpus == load_corpus("synthetic", states=5, length=200_000, seed=3)
    assert corpus != load_corpus("synthetic", states=5, length=200_000, seed=4)
    assert set(corpus.text) <= set("abcde")
    tokens = np.array([ord(character) - ord("a") for character in corpus.text], np.int32)
    counts = np.asarray(count_matrix(tokens, 5), np.float64)
    conditional = counts / counts.sum(axis=1, keepdims=True)
    entropy = -(counts * np.log(np.where(counts > 0, conditional, 1))).sum() / counts.sum()
    assert corpus.entropy_rate == pytest.approx(entropy, abs=0.01)


@pytest.mark.parametrize(("states", "entropy"), [(1, 0.0), (2, 0.6931)])
def test_synthetic_entropy_lies_between_none_and_uniform(states, entropy):
    corpus = load_corpus("synthetic", states=states, length=10)
    assert corpus.entropy_rate is not None
    assert 0 <= corpus.entropy_rate <= entropy + 1e-4


@pytest.mark.parametrize(("states", "order"), [(4, 2), (3, 4)])
def test_synthetic_sources_of_higher_order_have_the_entropy_of_their_counts(states, order):
    corpus = load_corpus("synthetic", states=states, length=200_000, seed=1, order=order)
    tokens = np.array([ord(character) - ord("a") for character in corpus.text])

    def entropy(context):
        """The entropy of a token after `context` tokens, from counts."""
        windows = np.lib.stride_tricks.sliding_window_view(tokens, context + 1) @ states ** np.arange(context + 1)[::-1]
        counts = np.bincount(windows, minlength=states ** (context + 1)).reshape(-1, states)
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        return -(counts * np.log(np.where(counts > 0, share, 1))).sum() / counts.sum()

    assert corpus.entropy_rate is not None
    assert corpus.entropy_rate == pytest.approx(entropy(order), abs=0.01)
    assert entropy(order - 1) > 1.05 * corpus.entropy_rate

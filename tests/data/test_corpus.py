import hashlib
import http.client
import io
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler

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
    ],
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
    ],
)
def test_what_is_not_text_is_refused_by_name(tmp_path, data, complaint):
    path = tmp_path / "strange.bin"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"strange\.bin {complaint}"):
        read_corpus(path)


def test_missing_file_folder_and_unknown_corpus_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*nothing\.txt: No such file"):
        read_corpus(tmp_path / "nothing.txt")
    with pytest.raises(DataError, match=r"cannot read .*: Is a directory"):
        read_corpus(tmp_path)
    with pytest.raises(DataError, match="unknown corpus 'bible'"):
        load_corpus("bible")


@pytest.fixture
def shakespeare_server(tmp_path, monkeypatch):
    """A server on this machine that has its own tinyshakespeare; yields (url, served file, cache folder)."""
    served, cache = tmp_path / "served", tmp_path / "cache"
    served.mkdir()
    (served / "input.txt").write_text("To be, or not to be\n")
    monkeypatch.setattr(corpus_module.platformdirs, "user_cache_dir", lambda name: str(cache))
    digest = hashlib.sha256((served / "input.txt").read_bytes()).hexdigest()
    monkeypatch.setattr(corpus_module, "SHAKESPEARE_SHA256", digest)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/input.txt", served / "input.txt", cache
    server.shutdown()
    server.server_close()


def test_shakespeare_is_downloaded_once_then_read_from_the_cache(shakespeare_server):
    url, served, cache = shakespeare_server
    first = load_corpus("shakespeare", url=url)
    served.unlink()
    assert load_corpus("shakespeare", url=url) == first
    assert first.text == "To be, or not to be\n"
    assert [path.name for path in cache.iterdir()] == ["tinyshakespeare.txt"]


def test_a_download_that_is_something_else_is_refused_and_not_kept(shakespeare_server):
    url, served, cache = shakespeare_server
    served.write_text("an error page")
    with pytest.raises(DataError, match="is not tinyshakespeare"):
        load_corpus("shakespeare", url=url)
    assert not cache.exists()


def test_a_download_cut_short_says_so(shakespeare_server, monkeypatch):
    class Cut(io.BytesIO):
        def read(self, *_):
            raise http.client.IncompleteRead(b"To be")

    monkeypatch.setattr(corpus_module.urllib.request, "urlopen", lambda *_, **__: Cut())
    with pytest.raises(DataError, match="could not download"):
        load_corpus("shakespeare")


def test_offline_says_what_to_do(shakespeare_server):
    url, served, _ = shakespeare_server
    served.unlink()
    with pytest.raises(DataError, match=r"could not download .*data\.path=FILE, or use data=pydocs"):
        load_corpus("shakespeare", url=url)
    with pytest.raises(DataError, match="could not download"):
        load_corpus("shakespeare", url="http://127.0.0.1:9/input.txt")


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

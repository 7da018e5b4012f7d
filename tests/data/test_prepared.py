import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from babyjax.data import preparing
from babyjax.data.batches import is_mapped, split_tokens
from babyjax.data.corpus import Corpus, read_corpus
from babyjax.data.documents import clean_text, cleaned
from babyjax.data.prepared import PreparedCorpus, open_prepared
from babyjax.data.preparing import cache_folder, load_file, prepare_corpus
from babyjax.data.tokenizer import ByteTokenizer, CharTokenizer, make_tokenizer
from babyjax.errors import DataError, TokenError
from babyjax.files import is_temporary, open_appending, take_lock

STORIES = ["the cat sat\non the mat.\n", "詩 é\r\n🙂", "", "and the cat sat again\n" * 9]
TEXT = "\x03".join(["the cat sat\non the mat.\n", "詩 é\n🙂", "and the cat sat again\n" * 9])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Documents in `stories`, and a cache of its own; every text is large."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(preparing, "PREPARED_FROM", 1)
    monkeypatch.setattr("babyjax.data.documents.CHUNK", 7)
    Path("stories").mkdir()
    for index, story in enumerate(STORIES):
        Path(f"stories/{index}.txt").write_bytes(story.encode())
    return tmp_path


@given(st.lists(st.sampled_from(["\ufeff", "a", "\r", "\n", "\r\n", "é", "詩", "🙂"])), st.lists(st.integers(0, 40)))
def test_text_that_is_cut_anywhere_reads_as_the_whole(characters, cuts):
    data = "".join(characters).encode()
    pieces = [data[start:end] for start, end in pairwise([0, *sorted(cuts), len(data)])]
    whole = data.decode().lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    assert "".join(cleaned(pieces, "x")) == clean_text(data, "x") == whole


@given(st.binary(max_size=20), st.lists(st.integers(0, 20)))
def test_what_is_not_text_is_named_wherever_it_is_cut(data, cuts):
    def outcome(pieces):
        try:
            return "".join(cleaned(pieces, "x"))
        except DataError as error:
            return str(error)

    pieces = [data[start:end] for start, end in pairwise([0, *sorted(cuts), len(data)])]
    if b"\0" in data:  # which of two faults comes first depends on the cuts
        assert "x is not" in outcome(pieces)
    else:
        assert outcome(pieces) == outcome([data])


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_a_prepared_corpus_is_the_corpus_in_memory(folder, tokenizer):
    if tokenizer == "bpe":
        pytest.importorskip("tokenizers")
    corpus, size = load_file("stories", tokenizer=tokenizer, vocab_size=270 if tokenizer == "bpe" else None), len(TEXT)
    expected = make_tokenizer(tokenizer, lambda: [TEXT], 270)
    assert isinstance(corpus, PreparedCorpus)
    assert corpus.tokenizer == expected
    assert is_mapped(corpus.tokens)
    assert is_mapped(split_tokens(corpus.tokens).val)
    np.testing.assert_array_equal(corpus.encode(expected), expected.encode(TEXT))
    memory = Corpus("stories", TEXT)
    assert (corpus.name, corpus.sha256, corpus.characters, corpus.bytes) == (
        "stories",
        memory.sha256,
        size,
        memory.bytes,
    )
    assert read_corpus("stories") == memory
    what, (train, val) = corpus.description, split_tokens(corpus.tokens)
    assert (what.documents, what.end_of_text) == (3, expected.end_of_text)
    assert what.splits == {"train": [0, len(train)], "val": [len(train), len(train) + len(val)]}
    assert what.dtype == ("uint16" if tokenizer == "bpe" else "uint8")
    corpus.check()


def test_a_large_text_is_prepared_once_and_again_when_it_or_the_tokenizer_changes(folder):
    def place(tokenizer="char"):
        corpus = load_file("stories", tokenizer=tokenizer)
        assert isinstance(corpus, PreparedCorpus)
        assert corpus.path == str(folder / "stories")
        assert corpus.folder
        return corpus.folder, (corpus.folder / "tokens.bin").stat().st_ino

    first = place()
    assert place() == first
    assert place("byte") != first
    Path("stories/4.txt").write_text("one more")
    assert place() != first


def test_a_small_text_is_read_into_memory_unless_it_is_prepared(folder, monkeypatch):
    monkeypatch.setattr(preparing, "PREPARED_FROM", 1 << 20)
    assert load_file("stories") == read_corpus("stories")
    there = cache_folder("stories", "text", "char", None)
    assert there
    preparing.prepare_once(there, "stories", "text", "char", None, lambda what, share: None)
    assert isinstance(load_file("stories"), PreparedCorpus)


def test_a_folder_can_be_moved_and_is_itself_a_path(folder):
    prepare_corpus(folder / "here", "stories", tokenizer="byte").check()
    Path("here").rename("there")
    corpus = load_file("there", tokenizer="byte")
    np.testing.assert_array_equal(corpus.encode(ByteTokenizer()), ByteTokenizer().encode(TEXT))
    with pytest.raises(DataError, match=r"there was prepared with other options; give data\.tokenizer=byte"):
        load_file("there")
    with pytest.raises(DataError, match="was prepared with another tokenizer"):
        corpus.encode(CharTokenizer.fit(TEXT))
    Path("own.json").write_text(CharTokenizer.fit(TEXT).to_json())
    prepare_corpus(folder / "again", "stories", tokenizer="own.json")
    np.testing.assert_array_equal(load_file("again", tokenizer="own.json").tokens, CharTokenizer.fit(TEXT).encode(TEXT))
    with pytest.raises(DataError, match=r"give data\.tokenizer=.*again/tokenizer\.json"):
        load_file("again")
    with pytest.raises(DataError, match="is not an empty folder"):
        prepare_corpus(folder / "again", "stories")
    with pytest.raises(DataError, match=r"cannot read missing\.txt: No such file or directory"):
        prepare_corpus("other", "missing.txt")
    with pytest.raises(DataError, match="again is a prepared corpus already"):
        prepare_corpus(folder / "more", "again")


def test_the_training_split_is_a_corpus_of_its_own(folder):
    corpus = load_file("stories")
    part = corpus.training()
    np.testing.assert_array_equal(part.tokens, corpus.tokens[: int(0.9 * len(corpus.tokens))])
    assert part.bytes == len(corpus.tokenizer.decode(part.tokens).encode())
    assert (part.name, part.sha256 == corpus.sha256) == ("stories-train", False)
    part.check()


def test_a_damaged_corpus_in_the_cache_is_prepared_again(folder):
    there = load_file("stories").folder
    (there / "tokens.bin").write_bytes(b"")
    load_file("stories").check()


def test_another_process_is_waited_for(folder):
    there, said = load_file("stories").folder, []
    shutil.rmtree(there)

    def progress(what, share):
        said.append(what)
        if what.startswith("waiting"):
            lock.close()

    lock = open_appending(there.parent / ".lock")
    assert take_lock(lock)
    load_file("stories", progress=progress).check()
    assert said[0] == "waiting for another process that reads this text"
    assert said[-1] == "encoding stories"


def test_links_with_other_names_are_other_corpora(folder):
    Path("x.txt").write_text('{"text": "a story"}\n' * 9)
    Path("x.jsonl").symlink_to("x.txt")
    assert load_file("x.txt").sha256 != load_file("x.jsonl").sha256


def test_a_gzipped_text_is_large_sooner(folder, monkeypatch):
    Path("x.txt.gz").write_bytes(gzip.compress(b"story " * 999))
    size = Path("x.txt.gz").stat().st_size
    monkeypatch.setattr(preparing, "PREPARED_FROM", 4 * size)
    assert isinstance(load_file("x.txt.gz"), PreparedCorpus)
    monkeypatch.setattr(preparing, "PREPARED_FROM", 4 * size + 1)
    assert load_file("x.txt.gz", tokenizer="byte") == read_corpus("x.txt.gz")


def test_a_pattern_is_kept_as_it_is_read_from_anywhere(folder, monkeypatch):
    Path("[old] x").mkdir()
    monkeypatch.chdir("[old] x")
    Path("y.txt").write_text("a story " * 9)
    corpus = load_file("*.txt")
    monkeypatch.chdir("/")
    assert load_file(str(corpus.path)).sha256 == corpus.sha256


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
@pytest.mark.parametrize("name", ["x.txt", "x.jsonl"])
def test_a_pipe_is_read_once(folder, name):
    os.mkfifo(name)
    data = b'{"text": "a"}\n' * 2000
    writer = threading.Thread(target=lambda: Path(name).write_bytes(data))
    with pytest.raises(DataError, match=r"cannot be read twice, as a pipe; save the text to a file first"):
        prepare_corpus(folder / "out", name)
    writer.start()
    assert isinstance(load_file(name), Corpus)
    writer.join()


def test_ctrl_c_where_it_ends_a_command_at_once_still_removes_what_is_half_written(folder):
    def interrupt(what, share):
        if what == "encoding stories":
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # as commands have it before training
    try:
        with pytest.raises(KeyboardInterrupt):
            prepare_corpus(folder / "out", "stories", progress=interrupt)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)
    assert [path.name for path in folder.iterdir()] == ["stories"]


def test_what_is_interrupted_leaves_nothing(folder, monkeypatch):
    def interrupt(what, share):
        if what == "encoding stories" and share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_corpus(folder / "out", "stories", progress=interrupt)
    Path("few.json").write_text(CharTokenizer("\x03\n .acehmnost").to_json())
    with pytest.raises(TokenError, match=r"character '詩' \(U\+8A69\) at position 25 is not"):
        prepare_corpus(folder / "out", "stories", tokenizer="few.json")

    def fill_the_disk(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preparing, "replace_file", fill_the_disk)
    with pytest.raises(DataError, match=r"cannot write .*out: No space left on device"):
        prepare_corpus(folder / "out", "stories")
    assert sorted(path.name for path in folder.iterdir()) == ["few.json", "stories"]


KILLED = """
import os, sys
from babyjax.data import preparing
preparing.PREPARED_FROM = 1
preparing.load_file("stories", progress=lambda what, share: what == "encoding stories" and os._exit(9))
"""


def test_a_process_that_is_killed_leaves_nothing_under_the_final_name_and_the_next_removes_the_rest(folder):
    assert subprocess.run([sys.executable, "-c", KILLED], check=False).returncode == 9
    there = cache_folder("stories", "text", "char", None)
    assert there
    assert sum(map(is_temporary, there.parent.iterdir())) == 1
    assert not there.exists()
    load_file("stories").check()
    assert {path.name for path in there.parent.iterdir()} == {".lock", "stories"}


def damage(name, change):
    path = Path("out", name)
    path.write_bytes(change(path.read_bytes()))


def fields(**changes):
    return lambda data: json.dumps(json.loads(data) | changes).encode()


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("tokens.bin", lambda data: data[:-1], "tokens.bin has 228 bytes, but 229 tokens of uint8 are 229"),
        ("tokens.bin", lambda data: data + b"\1", "tokens.bin has 230 bytes, but 229 tokens"),
        ("tokens.bin", lambda data: data[:-1] + b"\2", "tokens.bin was damaged or changed; remove"),
        ("tokenizer.json", lambda data: data + b" ", "tokenizer.json was changed"),
        ("corpus.json", lambda data: data[:-9], "is not a corpus that this version has prepared"),
        ("corpus.json", lambda data: b"\xff", "is not a corpus that this version has prepared"),
        ("corpus.json", lambda data: b"a" * (1 << 21), "it is larger than"),
        ("corpus.json", fields(format=2), "is not a corpus that this version has prepared"),
        ("corpus.json", fields(dtype="float32"), "is not a corpus that this version has prepared"),
        ("corpus.json", fields(dtype="uint16"), "229 tokens of uint16 are 458"),
        ("corpus.json", fields(tokens=0), "is not a corpus that this version has prepared"),
        ("corpus.json", fields(tokens="229"), "is not a corpus that this version has prepared"),
        ("corpus.json", fields(more=1), "is not a corpus that this version has prepared"),
    ],
    ids=range(13),
)
def test_a_damaged_corpus_is_named(folder, name, change, sentence):
    prepare_corpus(folder / "out", "stories")
    damage(name, change)
    with pytest.raises(DataError, match=sentence):
        open_prepared("out").check()


def test_a_corpus_without_one_of_its_files_is_named(folder):
    prepare_corpus(folder / "out", "stories")
    Path("out", "tokenizer.json").unlink()
    with pytest.raises(DataError, match="No such file"):
        load_file("out")
    Path("out", "tokens.bin").unlink()
    with pytest.raises(DataError, match="there is no file with a name ending in"):
        load_file("out")
    Path("out", "corpus.json").rename("stories/corpus.json")  # of somebody else
    assert load_file("stories").sha256


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("stories/x.txt", b"fine\0", r"stories/x\.txt is not text: it has a NUL byte at character 4"),
        ("stories/x.txt", "é".encode() * 9 + b"\xff", r"stories/x\.txt is not UTF-8 text \(byte 18 is 0xff\)"),
        ("stories/x.txt", "詩".encode()[:2], r"stories/x\.txt is not UTF-8 text \(byte 0 is 0xe8\)"),
        ("stories/x.txt", b"a\x03b", r"stories/x\.txt has U\+0003"),
        ("stories/x.jsonl", b'{"text": "a"}\n{"story": "a"}', r"line 2 of stories/x\.jsonl has no text"),
        ("stories/x.txt.gz", b"\x1f\x8b", r"cannot read stories/x\.txt\.gz: it is not a whole gzip file"),
    ],
    ids=range(6),
)
def test_a_text_that_cannot_be_read_leaves_nothing(folder, name, data, sentence):
    Path(name).write_bytes(data)
    with pytest.raises(DataError, match=sentence):
        load_file("stories")
    assert [path.name for path in (folder / "cache").rglob("*") if path.is_file()] == [".lock"]


def test_without_a_cache_folder_a_large_text_needs_one(folder, monkeypatch):
    monkeypatch.setattr(preparing, "user_cache", lambda: None)
    with pytest.raises(DataError, match=r"use babyjax prepare data\.path=\.\.\. out=FOLDER"):
        load_file("stories")

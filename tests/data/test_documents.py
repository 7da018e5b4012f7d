import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babyjax.data.corpus import read_corpus
from babyjax.data.documents import END_OF_TEXT, corpus_name, read_text_of
from babyjax.errors import DataError
from babyjax.runs.manifest import CorpusEntry, Manifest

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\x03\ufeff"), max_size=9))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files of documents. Of its folder `stories` a run would read six."""
    monkeypatch.chdir(tmp_path)
    for name, data in {
        "stories/b.txt": b"\xef\xbb\xbfsecond\r\n",
        "stories/a.txt": b"first",
        "stories/c.jsonl": b'{"text": "third"}\n\n{"text": ""}\n{"id": 4, "text": "\\u8a69\\r\\n4"}',
        "stories/deeper/d.txt.gz": gzip.compress(b"fifth"),
        "stories/e.jsonl.gz": gzip.compress(b'{"text": "sixth"}'),
        "stories/empty.txt": b"",
        "stories/.hidden.txt": b"hidden",
        "stories/.git/x.txt": b"hidden",
        "stories/picture.png": b"\x89PNG\0",
        "empty/x.txt": b"",
    }.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(data)
    return tmp_path


def test_a_folder_is_its_documents_in_the_order_of_their_names(folder):
    corpus = read_corpus("stories")
    assert corpus.text.split(END_OF_TEXT) == ["first", "second\n", "third", "詩\n4", "fifth", "sixth"]
    assert corpus.name == "stories"


@pytest.mark.parametrize(
    ("path", "documents", "name"),
    [
        ("stories/*.txt", ["first", "second\n"], "stories"),
        ("stories/**/*.gz", ["fifth", "sixth"], "stories"),
        ("stories/[ab].txt", ["first", "second\n"], "stories"),
        ("s*/b.*", ["second\n"], "FOLDER"),
        ("stories/c.jsonl", ["third", "詩\n4"], "c"),
        ("stories/e.jsonl.gz", ["sixth"], "e"),
        ("stories/deeper/d.txt.gz", ["fifth"], "d"),
        ("stories/deeper/..", ["first", "second\n", "third", "詩\n4", "fifth", "sixth"], "stories"),
    ],
)
def test_patterns_and_gzipped_files(folder, path, documents, name):
    corpus = read_corpus(path)
    assert corpus.text.split(END_OF_TEXT) == documents
    assert corpus.name == name.replace("FOLDER", folder.name)


def test_a_file_with_the_name_of_a_pattern_is_read(folder):
    Path("[ab].txt").write_text("itself")
    assert read_corpus("[ab].txt").text == "itself"
    assert corpus_name("[ab].txt") == "[ab]"


def test_a_single_text_keeps_what_it_has(folder):
    Path("one.txt").write_text(f"a{END_OF_TEXT}b")
    assert read_text_of("one.txt") == f"a{END_OF_TEXT}b"


@given(TEXTS)
def test_documents_of_json_lines_come_back(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("lines") / "x.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(json.dumps({"story": text}) for text in texts).encode()))
    if not any(texts):
        with pytest.raises(DataError, match=r"x\.jsonl\.gz is empty"):
            read_text_of(path, "story")
    else:
        assert read_text_of(path, "story").split(END_OF_TEXT) == [text for text in texts if text]


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("bad/x.jsonl", b'{"text": "a"}\n{"text"', r"line 2 of bad/x\.jsonl is not JSON"),
        ("bad/x.jsonl", b"[" * 100_000, r"line 1 of bad/x\.jsonl is not JSON"),
        ("bad/x.jsonl", b'{"text": "\xff"}', r"line 1 of bad/x\.jsonl is not JSON"),
        ("bad/x.jsonl", b"7", r"line 1 of bad/x\.jsonl is not a JSON object"),
        ("bad/x.jsonl", b'{"story": "a", "n": 1}', r"has no text in data\.field=text; it has text in: story"),
        ("bad/x.jsonl", b'{"text": 1}', r"has no text in data\.field=text; it has text in: none"),
        ("bad/x.jsonl", b'{"text": "\\ud800"}', r"line 1 of bad/x\.jsonl has half a surrogate pair"),
        ("bad/x.jsonl", b'{"text": "a\\u0003b"}', r"line 1 of bad/x\.jsonl has U\+0003, which stands between"),
        ("bad/x.jsonl", b'{"text": "a\\u0000"}', r"line 1 of bad/x\.jsonl is not text: it has a NUL byte"),
        ("bad/x.txt", b"\x89PNG\r\n", r"bad/x\.txt is not UTF-8 text"),
        ("bad/x.txt.gz", b"no", r"cannot read bad/x\.txt\.gz: it is not a whole gzip file"),
        (
            "bad/x.txt.gz",
            gzip.compress(b"a" * 9000, mtime=0)[:-9],
            r"cannot read bad/x\.txt\.gz: it is not a whole gzip file",
        ),
        (
            "bad/x.jsonl.gz",
            gzip.compress(b"7", mtime=0)[:-9],
            r"cannot read bad/x\.jsonl\.gz: it is not a whole gzip file",
        ),
        ("bad/x.md", b"a", r"there is no file with a name ending in \.txt or \.jsonl, or these and \.gz, in bad"),
    ],
    ids=range(14),
)
def test_what_cannot_be_read_is_named(folder, name, data, sentence):
    Path("bad").mkdir()
    Path("bad/fine.txt" if name != "bad/x.md" else "bad/other.md").write_text("fine")
    Path(name).write_bytes(data)
    with pytest.raises(DataError, match=sentence):
        read_corpus("bad")


def test_files_of_a_folder_are_found_whatever_their_case_and_through_links(folder):
    Path("mixed/inner").mkdir(parents=True)
    Path("mixed/A.TXT").write_text("a")
    Path("mixed/inner/B.JSONL").write_text('{"text": "b"}')
    Path("mixed/inner/c.ndjson.GZ").write_bytes(gzip.compress(b'{"text": "c"}'))
    Path("mixed/inner/d.jsonl.txt").write_text("{d}")
    Path("mixed/again").symlink_to("inner")  # the same files, once
    Path("mixed/inner/back").symlink_to("..")
    Path("mixed/there").symlink_to("../stories/deeper")
    assert sorted(read_text_of("mixed").split(END_OF_TEXT)) == ["a", "b", "c", "fifth", "{d}"]
    assert read_text_of("mixed/inner/B.JSONL") == "b"


def test_copies_of_texts_in_run_directories_are_no_documents(folder):
    run = Path("mine/checkpoints/run")
    (run / "tensorboard").mkdir(parents=True)
    Path("mine/a.txt").write_text("a")
    for name in ("corpus.txt", "more.txt", "tensorboard/x.txt"):
        (run / name).write_text("b")
    Path("mine/checkpoints/c.txt").write_text("c")
    assert read_text_of("mine").split(END_OF_TEXT).count("b") == 3
    (run / "run.json").write_text('{"format": "of another program"}')
    assert read_text_of("mine").split(END_OF_TEXT).count("b") == 3
    Manifest(config={}, corpus=CorpusEntry(name="b", characters=1, sha256=""), files={}, versions={}).write(run)
    assert sorted(read_text_of("mine").split(END_OF_TEXT)) == ["a", "c"]
    assert sorted(read_text_of("mine/**/*.txt").split(END_OF_TEXT)) == ["a", "c"]
    for path in (run, "mine/checkpoints/*/corpus.txt"):
        with pytest.raises(DataError, match="run directories are left out"):
            read_text_of(path)
    assert read_text_of(run / "corpus.txt") == "b"
    assert read_text_of(run / "*.txt") == "b\x03b"


def test_nothing_of_a_folder_is_left_out_without_a_word(folder):
    Path("odd").mkdir()
    Path("odd/a.txt").write_text("a")
    Path("odd/b.txt").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"cannot read odd/b\.txt: it is not a file"):
        read_text_of("odd")
    Path("odd/b.txt").unlink()
    Path("odd/a.txt.gz").write_bytes(gzip.compress(b"a"))
    with pytest.raises(DataError, match=r"odd/a\.txt is there gzipped too; remove one of the two"):
        read_text_of("odd")


def test_a_folder_that_may_not_be_read_is_named(folder, monkeypatch):
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("deeper"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(DataError, match="cannot read stories/deeper: Permission denied"):
        read_text_of("stories")


def test_names_of_folders_below_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    Path("books.v1").mkdir()
    Path("lone[1].txt").write_text("lone")
    assert [corpus_name(path) for path in ("~/books.v1", "~/lone[1].txt", "~/stories/*.txt", "~")] == [
        *("books.v1", "lone[1]", "stories"),
        folder.name,
    ]
    assert corpus_name("~nobody-here/x.txt") == "x"


def test_a_folder_or_a_pattern_without_text_is_refused(folder):
    with pytest.raises(DataError, match=r"there is no file that matches stories/\*\.md"):
        read_corpus("stories/*.md")
    with pytest.raises(DataError, match=r"empty/x\.txt is empty"):
        read_corpus("empty")

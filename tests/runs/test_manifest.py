import json

import pytest

from babyjax.errors import RunError
from babyjax.runs.manifest import Checkpoint, CorpusEntry, Manifest, read_manifest, sha256_of

CHECKPOINT = Checkpoint(step=7, losses={"val": 0.1}, arrays_digest="a", metrics_bytes=9, metrics_sha256="b")
MANIFEST = Manifest(
    config={"train": {"steps": 9, "grow_from": None}},
    corpus=CorpusEntry(name="诗", characters=3, sha256="c"),
    files={"corpus.txt": "c"},
    versions={"jax": "0"},
    checkpoints=[CHECKPOINT],
    pending=[3, 9],
)


def edit(folder, change, *, sign: bool = True):
    """Change the manifest in `folder` as someone who knows how it is written."""
    content = json.loads((folder / "run.json").read_text())
    del content["sha256"]
    change(content)
    content["sha256"] = sha256_of(json.dumps(content, sort_keys=True)) if sign else "0"
    (folder / "run.json").write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path):
    MANIFEST.write(tmp_path)
    return tmp_path


def test_what_is_written_is_read(folder):
    assert read_manifest(folder) == MANIFEST
    edit(folder, lambda content: None)  # other white space means the same
    assert read_manifest(folder) == MANIFEST
    assert MANIFEST.replace(pending=[]).checkpoints == [CHECKPOINT]


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", "{}", '{"sha256": 0}', "\0", "[" * 200_000])
def test_a_file_that_is_no_manifest_is_told(folder, content):
    (folder / "run.json").write_text(content)
    with pytest.raises(RunError, match=r"run\.json is not the manifest of a run"):
        read_manifest(folder)


def test_a_missing_unreadable_or_huge_file_is_told(folder):
    (folder / "run.json").unlink()
    with pytest.raises(RunError, match=r"cannot read .*run\.json: No such file"):
        read_manifest(folder)
    (folder / "run.json").write_bytes(b"\xff")
    with pytest.raises(RunError, match="is not the manifest"):
        read_manifest(folder)
    with (folder / "run.json").open("w") as file:
        file.truncate(1 << 40)
    with pytest.raises(RunError, match="is not the manifest"):
        read_manifest(folder)


def test_an_edit_and_another_version_are_told(folder):
    edit(folder, lambda content: content["checkpoints"][0]["losses"].update(val=0.0), sign=False)
    with pytest.raises(RunError, match=r"run\.json was changed after it was written"):
        read_manifest(folder)
    edit(folder, lambda content: content.update(format=1))
    with pytest.raises(RunError, match="was written by another version of babyjax"):
        read_manifest(folder)


@pytest.mark.parametrize(
    "change",
    [
        *[lambda content, key=key: content.pop(key) for key in ("config", "corpus", "files", "versions")],
        lambda content: content.update(more=1),
        lambda content: content.update(config=3),
        *[lambda content, step=step: content.update(pending=[step]) for step in ("../../x", -1, 1.0, True, 2**31)],
        *[
            lambda content, key=key: content["checkpoints"][0].pop(key)
            for key in ("step", "losses", "arrays_digest", "metrics_bytes", "metrics_sha256")
        ],
        *[
            lambda content, change=change: content["checkpoints"][0].update(change)
            for change in (
                {"step": "7"},
                {"step": 10**400},
                {"metrics_bytes": -1},
                {"losses": 3},
                {"losses": {"val": "1"}},
            )
        ],
    ],
)
def test_a_forged_manifest_has_no_fields_of_other_kinds(folder, change):
    edit(folder, change)
    with pytest.raises(RunError, match="is not the manifest of a run"):
        read_manifest(folder)


def test_a_number_that_is_not_finite_is_not_written(folder):
    with pytest.raises(ValueError, match="JSON"):
        MANIFEST.replace(config={"x": float("nan")}).write(folder)
    assert read_manifest(folder) == MANIFEST

"""Files that nobody should have given: each ends in one line, soon."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from flashvla_ros.core.errors import CheckpointError, FlashVLAError
from flashvla_ros.core.files import MEGABYTE, read_json, read_text, write_text

SOON_S = 5.0


def hostile(folder: Path) -> dict[str, Path]:
    """Paths that must be refused, by what is wrong with them."""
    paths = {name: folder / name for name in ("missing", "folder", "pipe", "loop", "sparse", "latin", "pointer")}
    paths["folder"].mkdir()
    os.mkfifo(paths["pipe"])
    paths["loop"].symlink_to(paths["loop"])
    with paths["sparse"].open("wb") as stream:
        stream.truncate(10**12)
    paths["latin"].write_bytes(b"caf\xe9")
    paths["pointer"].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    return {**paths, "endless": Path("/dev/zero"), "long": folder / ("x" * 300), "null": Path("a\0b")}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "No such file"),
        ("folder", "Is a directory"),
        ("pipe", "a device or a pipe"),
        ("endless", "a device or a pipe"),
        ("loop", "Too many levels of symbolic links"),
        ("sparse", "more than 16 MB"),
        ("latin", "not UTF-8 text"),
        ("pointer", "Git LFS pointer, not the file itself: fetch it with git lfs pull"),
        ("long", "File name too long"),
        ("null", "null"),
    ],
)
def test_each_is_refused_in_one_line_that_names_it(tmp_path: Path, kind: str, words: str) -> None:
    path = hostile(tmp_path)[kind]
    started_s = time.monotonic()
    with pytest.raises(CheckpointError, match=words) as refusal:
        read_text(path, CheckpointError)
    assert time.monotonic() - started_s < SOON_S
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_link_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    (tmp_path / "b.json").symlink_to(tmp_path / "a.json")
    assert read_json(tmp_path / "b.json") == {"a": 1}


def test_a_file_may_be_as_large_as_said_and_no_larger(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * MEGABYTE)
    assert len(read_text(path, most=MEGABYTE)) == MEGABYTE
    path.write_bytes(b"x" * (MEGABYTE + 1))
    with pytest.raises(FlashVLAError, match="more than 1 MB"):
        read_text(path, most=MEGABYTE)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "is not JSON"), ("[" * 10**6, "nested too deeply"), ("9" * 10**4, "is not JSON"), ("", "is not JSON")],
)
def test_json_that_cannot_be_read_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(FlashVLAError, match=words) as refusal:
        read_json(path)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_json_that_is_not_there_is_an_error_of_the_callers_kind(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        read_json(tmp_path / "missing.json", CheckpointError)


def test_the_folders_above_a_new_file_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "state.json", "{}")
    assert read_json(tmp_path / "a" / "b" / "state.json") == {}


def test_a_link_stays_one_and_nothing_is_left_beside_it(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "state.json")
    write_text(tmp_path / "link.json", "{}")
    assert (tmp_path / "link.json").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "state.json"]

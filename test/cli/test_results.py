"""The JSON that commands write."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

import flashvla_ros
from flashvla_ros.cli.results import meta, read_results, write_results
from flashvla_ros.core.errors import FlashVLAError


def test_values_of_every_kind_become_strict_json(tmp_path):
    path = tmp_path / "new" / "results.json"
    rows = [{"a": float("nan"), "b": np.float32(0.5), "c": np.arange(2), "d": (True, None), "e": Path("x")}]
    write_results(path, {"device": "cpu"}, rows)
    assert json.loads(path.read_text()) == {
        "meta": {"device": "cpu"},
        "rows": [{"a": None, "b": 0.5, "c": [0, 1], "d": [True, None], "e": "x"}],
    }


def test_every_file_says_device_and_versions():
    made = meta("a machine", command="bench")
    assert (made["device"], made["command"]) == ("a machine", "bench")
    assert made["versions"]["flashvla_ros"] == flashvla_ros.__version__
    assert made["versions"]["numpy"] == np.__version__


def test_results_that_are_there_stay_whole_until_new_ones_are(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    (link := tmp_path / "link.json").symlink_to(path)
    write_results(link, {"device": "first"}, [])

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FlashVLAError, match="No space left"):
        write_results(link, {"device": "second"}, [])
    assert read_results(path)["meta"] == {"device": "first"}
    assert link.is_symlink()


def test_a_device_takes_results_and_stays_one():
    write_results(Path("/dev/null"), {}, [])
    assert Path("/dev/null").is_char_device()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FlashVLAError, match="cannot write"):
        write_results(tmp_path / "file" / "results.json", {}, [])

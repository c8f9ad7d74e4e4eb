"""The JSON that commands write."""

import json
from pathlib import Path

import numpy as np
import pytest

import flashvla_ros
from flashvla_ros.cli.results import meta, write_results
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


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FlashVLAError, match="cannot write"):
        write_results(tmp_path / "file" / "results.json", {}, [])

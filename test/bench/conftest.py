"""A tiny policy, and the results of one run of the command on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import write_checkpoint

from flashvla_ros import __main__ as cli
from flashvla_ros.core.settings import ModelSettings
from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def policy(folder: Path) -> OpenVLAPolicy:
    # The formula counts the rows that there are; the static engine also computes what its buffers have to spare.
    return OpenVLAPolicy.load(ModelSettings(checkpoint=str(folder), engine="eager", threads=1))


@pytest.fixture(scope="session")
def results(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("out") / "bench.json"
    patch = pytest.MonkeyPatch()
    patch.setattr("flashvla_ros.bench.measure._STREAM_BYTES", {"cpu": 1 << 20})
    command = ["bench", "--model", str(folder), "--rounds", "3", "--threads", "1", "--json", str(out)]
    assert (
        cli.main(
            [
                *command,
                "--only",
                "dense*",
                "--only",
                "ics k=10 layer 2*",
                "--only",
                "temporal*",
                "--note",
                "a shared machine",
            ]
        )
        == 0
    )
    patch.undo()
    return json.loads(out.read_text())

"""What the doctor says of a step: each part's milliseconds, and why one that buys nothing is not there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_checkpoint

from flashvla_ros import __main__ as cli
from flashvla_ros.core.settings import Settings
from flashvla_ros.doctor.explain import explain
from flashvla_ros.doctor.finding import Level

MS = re.compile(r"\d[\d.]* ms")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("explain") / "tiny")


def told(folder: Path, **values: Any) -> dict[str, str]:
    settings = Settings().with_values({name.replace("__", "."): value for name, value in values.items()})
    found = list(explain(folder, settings))
    assert all(finding.level is Level.OK for finding in found), found
    return {finding.name: finding.text for finding in found}


def test_each_part_of_a_step_is_told_with_its_time(checkpoint: Path) -> None:
    text = told(checkpoint, decode__mode="draft")
    assert list(text)[:5] == ["exact", "step", "pruned", "drafted", "reused"]
    assert "answers a recorded frame as the reference does" in text["exact"]
    for stage in ("preprocess", "vision", "prefill", "decode"):
        assert re.search(rf"{stage} {MS.pattern}", text["step"]), stage
    assert len(MS.findall(text["pruned"])) == len(MS.findall(text["drafted"])) == 2
    assert "visual tokens from layer 2 on, by ics_values" in text["pruned"]
    assert text["drafted"].startswith("the last action's tokens, the action is greedy's")
    assert "and every guard" in text["reused"]


def test_what_is_switched_off_is_said_to_be(checkpoint: Path) -> None:
    text = told(checkpoint, pruning__method="none", model__engine="eager")
    assert "it is the reference" in text["exact"]
    assert text["pruned"].startswith("nothing: pruning.method is none")
    assert text["drafted"].startswith("nothing: decode.mode is greedy")
    assert text["reused"].startswith("nothing: there are no sets of tokens")
    assert "gate.mode is off" in told(checkpoint, gate__mode="off")["reused"]


def test_the_command_prints_it_behind_its_findings(checkpoint: Path, capsys: Any) -> None:
    cli.main(["doctor", "--checkpoint", str(checkpoint), "--explain", "--set", "pruning.drop=false"])
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[1] for line in lines if line.startswith(("ok", "warn", "FAIL"))]
    assert names.index("weights") < names.index("step")
    assert any("pruning.drop is false" in line for line in lines)


def test_a_folder_that_cannot_be_loaded_is_told_in_a_line(tmp_path: Path) -> None:
    (finding,) = explain(tmp_path, Settings())
    assert finding.level is Level.FAILURE
    assert str(tmp_path) in finding.text

"""Finished episodes survive a kill, and are the same episodes only where everything that matters is equal."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.settings import Settings
from flashvla_ros.evaluation import ledger as ledger_module
from flashvla_ros.evaluation import markdown
from flashvla_ros.evaluation.jobs import Job, Record
from flashvla_ros.evaluation.ledger import EpisodeLedger
from flashvla_ros.evaluation.modes import Mode
from flashvla_ros.evaluation.plan import Evaluation, play
from flashvla_ros.sim.perturbation import NONE, plan_episode

RECORD = Record(True, 90, 30, 0, 0.625, {"reuse": 30}, 12, 0, 40.5, 41.5, (300, 310), (10, 11, 12))


def test_what_was_added_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.jsonl"
    with EpisodeLedger(path) as ledger:
        ledger.add("a", RECORD)
    assert EpisodeLedger(path).records == {"a": RECORD}
    with EpisodeLedger(path) as ledger:
        ledger.add("b", dataclasses.replace(RECORD, success=False))
    assert list(EpisodeLedger(path).records) == ["a", "b"]
    assert not EpisodeLedger(path).foreign


def test_a_torn_line_is_played_again_and_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with EpisodeLedger(path) as ledger:
        ledger.add("a", RECORD)
    path.write_bytes(path.read_bytes() + b'{"key":"b","reco')
    with EpisodeLedger(path) as ledger:
        ledger.add("c", RECORD)
    assert list(EpisodeLedger(path).records) == ["a", "c"]


def test_a_full_disk_is_one_line_and_what_was_written_before_is_kept(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "x.jsonl"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with EpisodeLedger(path) as ledger:
        ledger.add("a", RECORD)
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(FlashVLAError, match=f"cannot write {path}: No space left"):
            ledger.add("b", RECORD)
    assert EpisodeLedger(path).records["a"] == RECORD


def test_episodes_of_other_code_are_told_apart(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "x.jsonl"
    with EpisodeLedger(path) as ledger:
        ledger.add("a", RECORD)
    monkeypatch.setattr(ledger_module, "code_digest", lambda: "other")
    with EpisodeLedger(path) as ledger:
        assert ledger.foreign == {"a"}
        ledger.add("a", RECORD)
        assert not ledger.foreign


def test_results_say_which_code_played_their_episodes_and_how_many_come_from_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, modes = tmp_path / "x.jsonl", (Mode("dense", {}),)

    def played(seeds: range) -> dict[str, Any]:
        evaluation = Evaluation(tmp_path, modes, ("drawer-open",), (NONE,), seeds, {}, False)
        cells, origins = play(evaluation, "weights", path, lambda jobs: ((i, RECORD) for i in range(len(jobs))))
        assert [len(cell.records) for cell in cells] == [len(seeds)]
        return origins

    now = ledger_module.code_digest()
    with monkeypatch.context() as patch:
        patch.setattr(ledger_module, "code_digest", lambda: "other")
        assert played(range(2)) == {"codes": {"other": 2}, "other_code": 0, "from_ledger": 0}
    assert played(range(1, 5)) == {"codes": {"other": 1, now: 3}, "other_code": 1, "from_ledger": 1}
    found = played(range(5))
    assert found == {"codes": {"other": 2, now: 3}, "other_code": 2, "from_ledger": 5}
    assert markdown.origins(found) == "2 of 5 episodes from other code; 5 of 5 episodes from earlier runs; "
    assert "2 episodes of" in capsys.readouterr().err


def test_a_file_that_does_not_say_it_and_one_with_nothing_to_say_are_told_alike() -> None:
    assert markdown.origins({"code": "x"}) == markdown.origins({"codes": {"x": 5}, "other_code": 0}) == ""


def test_a_key_stands_for_everything_that_an_episode_depends_on() -> None:
    plan = plan_episode("drawer-open", 1)
    job = Job(Settings(), plan)
    others = [
        Job(Settings().with_values({"gate.delta": 0.9}), plan),
        Job(Settings(), plan_episode("drawer-open", 2)),
        Job(Settings(), plan_episode("drawer-close", 1)),
        Job(Settings(), plan_episode("drawer-open", 1, "latency")),
        Job(Settings(), plan, free_running=True),
    ]
    keys = {job.key("weights"), job.key("other weights"), *(other.key("weights") for other in others)}
    assert len(keys) == 2 + len(others)
    moved = Job(Settings().with_values({"model.checkpoint": "/elsewhere", "node.instruction": "x"}), plan)
    assert moved.key("weights") == job.key("weights")

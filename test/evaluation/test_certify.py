"""Certification: what is played, when it ends, and what the certificate then says of a node's settings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flashvla_ros import __main__ as cli
from flashvla_ros.core.certificate import Certificate, certification, compared
from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.paths import share_path
from flashvla_ros.core.settings import Settings
from flashvla_ros.evaluation import ledger as ledger_module
from flashvla_ros.evaluation.certify import Certification, Trials
from flashvla_ros.evaluation.jobs import Job, Record
from flashvla_ros.evaluation.ledger import EpisodeLedger
from flashvla_ros.evaluation.modes import Mode
from flashvla_ros.evaluation.plan import Evaluation
from flashvla_ros.sim.perturbation import NONE

MODES = (
    Mode("dense", {"gate.mode": "off"}),
    Mode("safe", {"gate.max_reuse": 1}),
    Mode("fast", {"gate.max_reuse": 5}),
    Mode("wild", {"gate.max_reuse": 9}),
)
Verdict = Callable[[Job], bool]


def record(success: bool) -> Record:
    return Record(success, 10, 4, 0, 0.5, {}, None, None, 1.0, 1.0, (1,) * 6, (1,) * 4)


def certify(
    succeeds: Verdict, ledger: EpisodeLedger, episodes: int = 31, risk: float = 0.05
) -> tuple[list[Trials], list[Job]]:
    played: list[Job] = []

    def run(jobs: list[Job]) -> Iterator[tuple[int, Record]]:
        played.extend(jobs)
        return ((number, record(succeeds(jobs[number]))) for number in reversed(range(len(jobs))))

    tasks = ("drawer-open", "door-open", "button-press")
    evaluation = Evaluation(share_path("models", "demo"), MODES, tasks, (NONE,), range(episodes), {}, False)
    found = Certification(evaluation, "f" * 64, ledger, run, risk=risk, confidence=0.95)
    with ledger:
        return list(found.tries(6, lambda _: None)), played


def test_starts_of_libero_come_task_by_task() -> None:
    """A scene takes seconds to compile; the demo's order stays as it is, for its certificates name it."""
    for tasks in (("libero_object/0", "libero_object/1"), ("drawer-open", "door-open")):
        evaluation = Evaluation(share_path("models", "demo"), MODES, tasks, (NONE,), range(3), {}, False)
        starts = Certification(evaluation, "", EpisodeLedger(None), lambda _: iter(()), risk=0.5, confidence=0.5).starts
        assert len(set(starts)) == 6
        assert (starts == sorted(starts)) is tasks[0].startswith("libero")


def caps(jobs: list[Job]) -> list[int]:
    return sorted({job.settings.gate.max_reuse for job in jobs if job.settings.gate.mode != "off"})


def test_the_reference_plays_only_where_a_candidate_failed() -> None:
    tried, played = certify(lambda job: job.plan.seed != 3 or job.settings.gate.mode == "off", EpisodeLedger(None), 93)
    assert [trials.certified for trials in tried] == [True, True, True]
    assert [len(trials.induced) for trials in tried] == [3, 3, 3]
    assert sum(job.settings.gate.mode == "off" for job in played) == 3  # of 279 starts, and shared by all candidates
    assert tried[0].episodes == 279 + 3


def test_a_start_that_the_reference_fails_too_is_no_induced_failure() -> None:
    tried, _ = certify(lambda job: job.plan.seed % 2 == 0, EpisodeLedger(None))
    assert all(trials.certified and not trials.induced and trials.failures for trials in tried)


def test_the_first_candidate_that_fails_ends_it_early() -> None:
    tried, played = certify(lambda job: job.settings.gate.max_reuse != 5, EpisodeLedger(None))
    assert [(trials.candidate.name, trials.certified) for trials in tried] == [("safe", True), ("fast", False)]
    assert caps(played) == [1, 5]
    assert tried[1].played == 6 < tried[1].planned == 93  # one failure is allowed of 93: six are more


def test_what_is_in_the_ledger_is_not_played_again(tmp_path: Path) -> None:
    ledger = tmp_path / "episodes.jsonl"
    first, once = certify(lambda _: True, EpisodeLedger(ledger))
    again, twice = certify(lambda _: False, EpisodeLedger(ledger))
    assert len(once) == 3 * 93
    assert not twice
    assert again == first


def test_what_other_code_has_played_is_played_again_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "episodes.jsonl"
    with monkeypatch.context() as other:
        other.setattr(ledger_module, "code_digest", lambda: "other")
        _, before = certify(lambda job: job.plan.seed != 3 or job.settings.gate.mode == "off", EpisodeLedger(path), 93)
    _, again = certify(lambda job: job.plan.seed != 3 or job.settings.gate.mode == "off", EpisodeLedger(path), 93)
    assert len(again) == len(before) == 3 * 279 + 3  # the reference's three starts serve every candidate
    _, third = certify(lambda _: False, EpisodeLedger(path), 93)
    assert not third


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--set", "decode.mode=draft"], "decode.mode would hold for dense too"),
        (["--set", "control.blend=temporal"], "control.blend would hold for dense too"),
        (["--candidates", "guarded", "open_loop"], "open_loop plays without looking"),
        (["--candidates", "dense"], "nothing but the reference dense"),
        (["--candidates", "guarded:gate.calibration=online"], "moves its thresholds"),
    ],
)
def test_what_cannot_be_tried_is_refused(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["certify", "--tasks", "drawer-close", *words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_too_few_starts_are_refused_before_anything_is_played(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["certify", "--episodes", "5", "--tasks", "drawer-close"]) == 2
    assert "5 starts cannot certify" in capsys.readouterr().err
    assert cli.main(["certify", "--risk", "0"]) == 2


CERTIFIED = Certificate(
    name="fast",
    checkpoint="a" * 64,
    settings=compared(Settings()),
    tasks=("drawer-open",),
    tasks_digest="0" * 16,
    version="0.1.0",
    code="1" * 12,
    episodes=93,
    induced=1,
    risk=0.05,
    confidence=0.95,
    bound=0.0499,
    device="cpu",
)


def test_a_certificate_speaks_for_the_settings_it_was_made_with(tmp_path: Path) -> None:
    file = tmp_path / "certificate.json"
    CERTIFIED.write(file)
    settings = Settings().with_values({"evidence.certificate": str(file)})
    certified, why = certification(settings, "a" * 64)
    assert certified
    assert why.startswith("certified: at most 5.0% of episodes fail because of fast, with 95% confidence (1 of 93 did")
    for values, checkpoint, reason in (
        ({"gate.delta": 0.1}, "a" * 64, "gate.delta is 0.1, the certificate has 0.5"),
        ({}, "b" * 64, "another checkpoint"),
        ({"gate.calibration": "online"}, "a" * 64, "gate.calibration is online"),
    ):
        certified, why = certification(settings.with_values(values), checkpoint)
        assert not certified
        assert reason in why
    moved = settings.with_values({"limits.lower": (-1.0,) * 4, "node.instruction": "go"})  # of the robot, not of these
    assert certification(moved, "a" * 64)[0]


@pytest.mark.parametrize("change", [{"induced": 94}, {"bound": 0.06}, {"more": 1}, {"tasks": None}])
def test_what_is_no_certificate_is_refused_and_certifies_nothing(tmp_path: Path, change: dict[str, object]) -> None:
    file = tmp_path / "certificate.json"
    file.write_text(json.dumps(dataclasses.asdict(CERTIFIED) | change))
    with pytest.raises(SettingsError, match="is no certificate"):
        Certificate.read(file)
    certified, why = certification(Settings().with_values({"evidence.certificate": str(file)}), "a" * 64)
    assert not certified
    assert "is no certificate" in why


def test_without_a_certificate_nothing_is_certified(tmp_path: Path) -> None:
    settings = Settings().with_values({"model.checkpoint": str(tmp_path)})
    assert certification(settings, "") == (False, "not certified: no certificate (flashvla-ros certify makes one)")
    elsewhere = Settings().with_values({"model.remote": "ws://127.0.0.1:8000"})  # no matter what ships with the demo
    assert certification(elsewhere, "")[1].startswith("not certified: no certificate")
    CERTIFIED.write(tmp_path / "certificate.json")
    assert certification(settings, "a" * 64)[0]

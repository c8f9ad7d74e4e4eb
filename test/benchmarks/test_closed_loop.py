"""The campaigns of calibration in closed loop: what they keep, choose and compare, without their hours of episodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from checkpoints import write_checkpoint
from safetensors.numpy import load_file

from benchmarks import calibration, closed_loop, shift
from benchmarks.closed_loop import Ledger, row_of, settings_of, tuned
from flashvla_ros.sim.tasks import TASKS


def played(chain: tuple[Any, ...], seed: int, task: str, *, off: int = 0, success: bool = True) -> dict[str, Any]:
    counts = {"steps": 100, "reused": 50, "off": off, "audits": 0, "permissiveness": 0.0}
    made = {"success": success, "state": [], "claim": "", "of": "now", "device": "a machine"}
    return {"chain": list(chain), "seed": seed, "task": task, **counts, **made}


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """What is played by the code and the settings of now has the digest ``now``."""
    monkeypatch.setattr(closed_loop, "digest", lambda *_: "now")
    return Ledger(tmp_path / "ledger.jsonl")


class Played:
    """In the place of the player: says at once what was played."""

    scenes: ClassVar[list[tuple[Any, ...]]] = []

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> Played:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def play(self, chain: tuple[Any, ...], seed: int, task: str) -> dict[str, Any]:
        self.scenes.append((*chain, seed, task))
        return played(chain, seed, task)


@pytest.fixture
def scenes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Scenes that are played from now on, without a robot."""
    monkeypatch.setattr(Played, "scenes", [])
    monkeypatch.setattr(closed_loop, "Player", Played)
    return Played.scenes


def test_a_line_that_was_cut_off_is_played_again(ledger: Ledger, tmp_path: Path) -> None:
    ledger.add(played(("demo", 0.5, "online"), 0, "drawer-open"))
    whole = (tmp_path / "ledger.jsonl").read_text(encoding="utf-8")
    (tmp_path / "ledger.jsonl").write_text(whole + whole[:40], encoding="utf-8")
    again = Ledger(tmp_path / "ledger.jsonl")
    scenes = [(0, "drawer-open"), (1, "drawer-open")]
    assert again.chain(("demo", 0.5, "online"), "now", scenes) == [json.loads(whole)]
    again.add(played(("demo", 0.5, "online"), 1, "drawer-open"))  # nor does it take the next one with it
    assert len(Ledger(tmp_path / "ledger.jsonl").chain(("demo", 0.5, "online"), "now", scenes)) == 2


@pytest.mark.parametrize(("off", "chosen"), [((9, 6, 5), 0.7), ((5,), 0.5), ((9, 9, 9, 9, 9), 0.9)])
def test_the_tuned_delta_is_the_most_permissive_one_that_stays_within_the_risk(
    ledger: Ledger, off: tuple[int, ...], chosen: float
) -> None:
    for delta, count in zip(closed_loop.DELTAS, off, strict=False):
        for seed in closed_loop.TUNING_SEEDS:
            for task in TASKS:
                ledger.add(played(("demo", 0.5, f"tuning {delta:g}"), seed, task, off=count))
    assert tuned(ledger, "demo", 0.5) == chosen


def test_gates_are_compared_episode_by_episode() -> None:
    found = [
        row_of(("demo", 0.5, mode), [played(("demo", 0.5, mode), 0, "x", success=one) for one in wins], None)
        for mode, wins in {"online": [True] * 8 + [False] * 2, "coin": [False] * 7 + [True] * 3}.items()
    ]
    page = closed_loop.page({"meta": {"device": "d", "risk": 0.05}, "rows": found})
    online, coin = page.splitlines()[-2:]
    assert "| – |" in online
    assert "-50 (" in coin  # 3 of 10 against 8 of 10
    assert "p = 0.18" in coin  # exact McNemar of 7 against 2


def test_a_campaign_is_played_in_parts(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for keep, mode in ((0.5, "δ 0.5"), (0.75, "online"), (0.75, "δ 0.5")):
        for task in TASKS:
            ledger.add(played(("demo", keep, mode), 0, task))
        part = ["--policies", "demo", "--keep", str(keep), "--modes", mode, "--seeds", "1"]
        files = ["--ledger", str(tmp_path / "ledger.jsonl"), "--json", str(tmp_path / "rows.json")]
        monkeypatch.setattr("sys.argv", ["closed_loop", *part, *files])
        assert closed_loop.main() == 0
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))["rows"]
    assert [(row["keep"], row["mode"]) for row in rows] == [(0.75, "δ 0.5"), (0.75, "online"), (0.5, "δ 0.5")]


def test_a_chain_is_cut_to_the_seeds_asked_for_and_goes_on_where_a_scene_is_missing(
    ledger: Ledger, scenes: list[tuple[Any, ...]]
) -> None:
    chain, settings = ("demo", 0.5, "online"), settings_of("demo", 0.5, {})
    whole = closed_loop.scenes_of(range(3))
    assert len(closed_loop.extend(ledger, chain, settings, whole)) == len(scenes) == 18
    found = closed_loop.extend(ledger, chain, settings, whole[:12])
    assert [(one["seed"], one["task"]) for one in found] == whole[:12] and len(scenes) == 18
    row = row_of(chain, found, None)
    assert (row["episodes"], row["seeds"], row["device"]) == (12, 2, "a machine")
    ledger.episodes = [one for one in ledger.episodes if (one["seed"], one["task"]) != whole[4]]
    assert len(closed_loop.extend(ledger, chain, settings, whole)) == 18
    assert scenes[18:] == [(*chain, *scene) for scene in whole[4:]]  # each carries on what the one before has learnt


def test_what_other_settings_weights_or_code_have_played_is_played_again(
    tmp_path: Path, scenes: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, chain, one = Ledger(tmp_path / "ledger.jsonl"), ("demo", 0.5, "online"), [(0, "drawer-open")]
    checkpoint = write_checkpoint(tmp_path / "tiny")
    settings = settings_of("demo", 0.5, {"model.checkpoint": str(checkpoint)})
    others = [settings, settings.with_values({"gate.delta": 0.9}), settings_of("demo", 0.5, {})]
    for count, values in enumerate(others, start=1):
        for _ in range(2):
            closed_loop.extend(ledger, chain, values, one)
            assert len(scenes) == count
    moved = checkpoint.rename(tmp_path / "moved")
    closed_loop.extend(ledger, chain, settings.with_values({"model.checkpoint": str(moved)}), one)
    assert len(scenes) == 3
    monkeypatch.setattr("benchmarks.digest.code_digest", lambda: "other")
    closed_loop.extend(ledger, chain, others[-1], one)
    assert len(scenes) == 4


def test_rows_of_an_older_file_keep_its_device_and_seeds(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.json"
    older = row_of(("demo", 0.25, "online"), [played(("demo", 0.25, "online"), 0, task) for task in TASKS], None)
    del older["device"], older["seeds"]
    file.write_text(json.dumps({"meta": {"device": "an older machine", "seeds": 17, "risk": 0.05}, "rows": [older]}))
    for task in TASKS:
        ledger.add(played(("demo", 0.5, "online"), 0, task))
    part = ["--policies", "demo", "--keep", "0.5", "--modes", "online", "--seeds", "1"]
    monkeypatch.setattr("sys.argv", ["closed_loop", *part, "--ledger", str(ledger._path), "--json", str(file)])
    assert closed_loop.main() == 0
    results = json.loads(file.read_text())
    assert [(row["keep"], row["device"], row["seeds"]) for row in results["rows"]] == [
        (0.5, "a machine", 1),
        (0.25, "an older machine", 17),
    ]
    assert closed_loop.page(results).startswith("a machine, an older machine; ε = 0.05")


def test_another_noise_plays_what_is_noisy_again_and_what_goes_on_from_it(
    tmp_path: Path, scenes: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shift, "ROUNDS", dict.fromkeys(shift.ROUNDS, 1))
    checkpoint, ledger = write_checkpoint(tmp_path / "tiny"), Ledger(tmp_path / "ledger.jsonl")
    for noise, expected in ((0.1, None), (0.1, set()), (0.2, {"during", "after"})):
        scenes.clear()
        (tmp_path / f"{noise} {expected}").mkdir()
        found = shift.play(ledger, "online", shift.make_noisy(checkpoint, noise, tmp_path / f"{noise} {expected}"))
        assert len(found) == 1 + 2 * len(shift.SHIFTS) and all(len(one) == len(TASKS) for one in found.values())
        again = {(name, phase) for name, phase, *_ in scenes}
        assert again == (set(found) if expected is None else {("weight noise", phase) for phase in expected})


def test_simulated_runs_of_other_code_are_simulated_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for code, expected in (("one", 6), ("one", 0), ("two", 6)):
        runs = []
        monkeypatch.setattr(calibration, "digest", lambda *_, code=code: code)
        monkeypatch.setattr(calibration, "simulate", lambda *key, runs=runs: runs.append(key) or {"loss": 0.0})
        found = calibration.play(1, 10, tmp_path / "runs.jsonl")
        assert len(runs) == expected and [len(cell) for cell in found.values()] == [1] * 6


def test_each_shift_has_the_scenes_of_the_others_and_none_twice() -> None:
    chains = list(shift.phases({"before": 2, "during": 1, "after": 1}))
    assert len(chains) == 1 + 2 * len(shift.SHIFTS)
    by_phase: dict[str, set[tuple[int, str]]] = {}
    for _, phase, scenes in chains:
        assert by_phase.setdefault(phase, set(scenes)) == set(scenes)
    assert sum(map(len, by_phase.values())) == len(set().union(*by_phase.values())) == 4 * len(TASKS)


def test_weight_noise_is_a_share_of_each_matrix_and_leaves_vectors(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "tiny")
    noisy = shift.make_noisy(checkpoint, 0.1, tmp_path)
    (file,) = checkpoint.glob("*.safetensors")
    before, after = load_file(file), load_file(noisy / file.name)
    for name, weight in before.items():
        change = (after[name].astype(float) - weight.astype(float)).std()
        expected = 0.1 * weight.astype(float).std() if weight.ndim > 1 else 0.0
        assert change == pytest.approx(expected, rel=0.2, abs=1e-6), name
    assert np.isfinite(np.concatenate([weight.ravel() for weight in after.values()])).all()


def test_a_chain_differs_from_the_defaults_by_its_gate_alone() -> None:
    for mode in (*closed_loop.MODES.values(), *shift.MODES.values()):
        settings = settings_of("demo", 0.5, mode)
        assert (settings.pruning.keep_ratio, settings.model.threads) == (0.5, 1)

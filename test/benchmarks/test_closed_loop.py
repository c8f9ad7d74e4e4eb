"""The campaigns of calibration in closed loop: what they keep, choose and compare, without their hours of episodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_checkpoint
from safetensors.numpy import load_file

from benchmarks import closed_loop, shift
from benchmarks.closed_loop import Ledger, row_of, settings_of, tuned
from flashvla_ros.sim.tasks import TASKS


def played(chain: tuple[Any, ...], seed: int, task: str, *, off: int = 0, success: bool = True) -> dict[str, Any]:
    counts = {"steps": 100, "reused": 50, "off": off, "audits": 0, "permissiveness": 0.0}
    return {"chain": list(chain), "seed": seed, "task": task, "success": success, **counts, "state": [], "claim": ""}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.jsonl")


def test_a_line_that_was_cut_off_is_played_again(ledger: Ledger, tmp_path: Path) -> None:
    ledger.add(played(("demo", 0.5, "online"), 0, "drawer-open"))
    whole = (tmp_path / "ledger.jsonl").read_text(encoding="utf-8")
    (tmp_path / "ledger.jsonl").write_text(whole + whole[:40], encoding="utf-8")
    again = Ledger(tmp_path / "ledger.jsonl")
    assert again.chain(("demo", 0.5, "online")) == [json.loads(whole)]
    again.add(played(("demo", 0.5, "online"), 1, "drawer-open"))  # nor does it take the next one with it
    assert len(Ledger(tmp_path / "ledger.jsonl").chain(("demo", 0.5, "online"))) == 2


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

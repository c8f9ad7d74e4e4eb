"""The benchmark of faults in real actions, on a small file of the same form."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.droid_faults import Faults, measure
from flashvla_ros.core.errors import FlashVLAError


def test_limits_come_from_the_calibration_part_alone(tmp_path):
    rng = np.random.default_rng(0)
    calibration = np.tanh(0.5 * rng.normal(size=(400, 7)))
    before = np.tanh(0.4 * rng.normal(size=(60, 7)))
    actions = before + 0.01 * rng.normal(size=before.shape)
    kinds = np.repeat([0, 1, 2, 3, 4], [20, 10, 10, 10, 10])
    actions[kinds == 1, 3] = np.nan
    actions[kinds == 2, 0] = 5.0
    actions[kinds >= 3] = -np.sign(before[kinds >= 3]) * 0.9
    calibration[:5] = actions[:5]
    path = tmp_path / "faults.npz"
    np.savez(path, calib_actions=calibration, eval_action=actions, eval_prev=before, eval_ftype=kinds)
    faults = Faults(path)
    assert (faults.shared, len(faults.calibration)) == (5, 395)
    rows = measure(faults)
    assert rows[0]["nonfinite"] == rows[0]["out_of_bounds"] == 1.0
    assert rows[0]["false_alarms"] == rows[2]["false_alarms"] == 0.0
    assert rows[2]["detected"] > rows[0]["detected"]
    assert rows[3]["false_alarms"] == 0.0
    with pytest.raises(FlashVLAError, match=r"is not supervisor_eval\.npz"):
        Faults(tmp_path / "none.npz")

"""The comparison of pruning methods, on the demo policy and the simulated robot."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flashvla_ros.core.settings import ModelSettings, PruningSettings
from flashvla_ros.sim.errors import SimulationError

try:
    from flashvla_ros.bench.token_frames import windows
except SimulationError as error:
    pytest.skip(str(error), allow_module_level=True)

from flashvla_ros.bench.token_candidates import CANDIDATES
from flashvla_ros.bench.token_choice import Comparison, table
from flashvla_ros.vla.policy import OpenVLAPolicy
from flashvla_ros.vla.pruning.select import METHODS, kept_count

LAYER, RATIO = 1, 0.125
PRUNED = PruningSettings(method="ics", layer=LAYER, keep_ratio=RATIO)


@pytest.fixture(scope="module")
def policy() -> OpenVLAPolicy:
    return OpenVLAPolicy.load(ModelSettings(device="cpu", dtype="float32"))


@pytest.fixture(scope="module")
def shown(policy):
    """Three windows of an episode, which begins far from the object."""
    stream = windows(policy, ["drawer-open"], [0], 12)
    return [next(stream) for _ in range(3)]


@pytest.fixture(scope="module")
def comparison(policy, shown):
    rules = {name: METHODS[name].select for name in METHODS}
    result = Comparison(policy, {**rules, **CANDIDATES}, [LAYER], [RATIO])
    for window in shown:
        result.add(window)
    return result


def test_windows_are_consecutive_steps_of_a_dense_episode(shown):
    assert [[frame.step for frame in window] for window in shown] == [[0, 1, 2], [12, 13, 14], [24, 25, 26]]
    for frame in (frame for window in shown for frame in window):
        assert 0.05 < (frame.robot > 0).mean() < 0.5
        assert 0.05 < (frame.thing > 0).mean() < 0.5
        assert (frame.robot + frame.thing <= 1.0 + 1e-9).all()


def test_errors_are_those_of_the_policy_itself(policy, shown, comparison):
    row = next(row for row in comparison.rows() if row["method"] == "ics")
    errors = next(tally.errors for cell, tally in comparison.tallies.items() if cell.method == "ics")
    for window, found in zip(shown, errors, strict=True):
        dense = policy.infer(window[-1].observation, PruningSettings(method="none")).normalized[0]
        pruned = policy.infer(window[-1].observation, PRUNED).normalized[0]
        assert found[0] == pytest.approx(abs(pruned[0] - dense[0]), abs=1e-9)  # later ones are fed the dense tokens
    assert row["error_mean"] == pytest.approx(np.mean(errors))
    assert row["frames"] == 3
    assert row["kept"] == kept_count(RATIO, policy.visual_tokens)


def test_overlaps_are_those_of_the_policys_sets(policy, shown, comparison):
    overlaps = next(tally.overlaps for cell, tally in comparison.tallies.items() if cell.method == "ics")
    for window, found in zip(shown, overlaps, strict=True):
        first, second = (set(policy.infer(frame.observation, PRUNED).kept) for frame in window[1:])
        overlap, chance = len(first & second) / len(second), len(second) / policy.visual_tokens
        assert found == pytest.approx((overlap - chance) / (1 - chance))


def test_candidates_choose_k_tokens_in_order(policy, shown, comparison):
    frame = shown[0][-1]
    with torch.inference_mode():
        square = policy.processor.to_square(frame.image)
        visual = policy.model.visual_tokens(policy.processor.normalize(square))
        ids = torch.tensor([policy.prompts(frame.observation.instruction)])
        for layer in (0, 2):
            view = comparison._view(visual, ids, layer, frame, square, square)
            for name, rule in CANDIDATES.items():
                kept = rule(view, 24, PruningSettings()).tolist()
                assert len(kept) == 24, name
                assert kept == sorted(set(kept)), name


def test_picture_and_table_name_every_method(comparison, shown):
    picture = comparison.picture(shown[:2], LAYER, RATIO)
    assert picture.shape[1] > 2 * 216
    assert picture.shape[0] == len(comparison.methods) * (216 + 22)
    lines = table(comparison.rows())
    assert len(lines) == 2 + len(comparison.methods)
    assert all(any(f"| {name} |" in line for line in lines) for name in comparison.methods)

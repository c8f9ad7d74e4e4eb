"""The check of the fast engine on a robot's first observation, with engines that are broken on purpose."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from checkpoints import LostMask

from flashvla_ros.bench.trace import load_observations
from flashvla_ros.core.errors import ActionError, ObservationError
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import ModelSettings, PruningSettings, Settings
from flashvla_ros.core.types import Inference, Observation
from flashvla_ros.vla.arch.table import load
from flashvla_ros.vla.checked import CheckedPolicy, difference
from flashvla_ros.vla.engine import kernels
from flashvla_ros.vla.loading import load_policy
from flashvla_ros.vla.step import VLAPolicy

PRUNING = PruningSettings()


@functools.cache
def frames() -> list[Observation]:
    """Pictures of the simulated robot."""
    return load_observations("open the drawer")


def request(frame: int = 0, instruction: str = "open the drawer") -> Request:
    return Request(dataclasses.replace(frames()[frame], instruction=instruction), PRUNING)


@pytest.fixture(scope="module")
def policy() -> VLAPolicy:
    """The demo policy on the static engine, warmed up as a node warms it up."""
    policy = load(ModelSettings(device="cpu", engine="static"))
    policy.warm_up(PRUNING, "open the drawer")
    return policy


@pytest.fixture(scope="module")
def reference(policy: VLAPolicy) -> Inference:
    return policy.reference().infer(request())


def lose_the_mask(policy: VLAPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy.engine._kernels, "_attention", LostMask())


def turn_positions_round(_policy: VLAPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = kernels._of_the_rows
    monkeypatch.setattr(kernels, "_of_the_rows", lambda buffers: tuple(part.flip(1) for part in sound(buffers)))


def keep_the_last_frame(policy: VLAPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    policy.infer(request(1))
    monkeypatch.setattr(policy.engine, "visual_tokens", lambda _pixels: policy.engine._kernels.visual)


def spoil_what_a_draft_settles(policy: VLAPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = policy.engine.decode

    def decode(start, known):
        decoded = sound(start, known)
        decoded.tokens[-1] -= int(bool(known))
        return decoded

    monkeypatch.setattr(policy.engine, "decode", decode)


def say_nothing(policy: VLAPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_unused):
        raise ActionError("the logits say nothing")

    monkeypatch.setattr(policy.engine, "decode", fail)


def test_a_sound_engine_goes_on(policy, reference) -> None:
    checked = CheckedPolicy(policy)
    first, second = checked.infer(request()), checked.infer(request(1))
    assert checked.checked and not checked.difference
    assert np.array_equal(first.tokens, reference.tokens)
    assert np.array_equal(second.tokens, policy.infer(request(1)).tokens)


@pytest.mark.parametrize(
    "spoil",
    [lose_the_mask, turn_positions_round, keep_the_last_frame, spoil_what_a_draft_settles, say_nothing],
)
def test_a_broken_engine_never_moves_the_robot(
    policy, reference, monkeypatch, caplog, spoil: Callable[[VLAPolicy, pytest.MonkeyPatch], None]
) -> None:
    spoil(policy, monkeypatch)
    checked = CheckedPolicy(policy)
    answers = [checked.infer(request()), checked.infer(request())]
    assert "engine static" in checked.difference
    assert all(np.array_equal(answer.action, reference.action) for answer in answers)
    assert "the reference runs from here on" in caplog.text


def test_an_observation_that_no_engine_can_use_leaves_the_check_to_the_next(policy) -> None:
    checked = CheckedPolicy(policy)
    with pytest.raises(ObservationError):
        checked.infer(request(instruction=" "))
    assert not checked.checked
    checked.infer(request())
    assert checked.checked


def answer(values: list[float], tokens: list[int]) -> Inference:
    normalized = np.array([values])
    return Inference(normalized, normalized, np.array(tokens, dtype=np.int64), None, 4)


def test_in_half_precision_two_bins_side_by_side_may_tie() -> None:
    expected = answer([0.0, 0.5], [100, 36])
    neighbour = answer([2 / 255, -0.9], [99, 215])  # what follows a tie follows from it
    assert difference(neighbour, expected, torch.bfloat16) == ""
    assert "action token 0 is 99, not 100, and 1 after it" in difference(neighbour, expected, torch.float32)
    assert difference(answer([4 / 255, 0.5], [98, 36]), expected, torch.bfloat16)


def test_an_action_without_a_token_a_value_is_compared_by_its_values() -> None:
    expected = answer([0.0, 0.5], [])
    assert difference(answer([1e-5, 0.5], []), expected, torch.float32) == ""
    assert "by 0.1" in difference(answer([0.1, 0.5], []), expected, torch.float32)
    assert "shape" in difference(answer([0.1], []), expected, torch.float32)


def test_the_node_is_told_which_engine_runs() -> None:
    settings = Settings().with_values({"model.device": "cpu", "model.engine": "static"})
    loaded = load_policy(settings)
    assert loaded.engine().name == "static, not yet checked"
    loaded.policy.infer(request())
    assert (loaded.engine().name, loaded.engine().fault) == ("static, checked", "")
    trusted = load_policy(settings.with_values({"model.check": "off"}))
    assert trusted.engine().name == "static" and isinstance(trusted.policy, VLAPolicy)

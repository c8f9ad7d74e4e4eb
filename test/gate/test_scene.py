"""The scene guard: signatures of any frame, and a jump told from motion."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvla_ros.core.settings import GateSettings
from flashvla_ros.gate import scene
from flashvla_ros.gate.scene import GRID, SceneMotion, compare, signature

GATE = GateSettings()


@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 255))
@settings(max_examples=40, deadline=None)
def test_any_size_gives_the_same_grid(height: int, width: int, level: int) -> None:
    frame = signature({"image": np.full((height, width, 3), level, np.uint8)})
    assert frame.shape == (1, GRID, GRID, 3)
    assert frame.dtype == np.float32
    np.testing.assert_array_equal(frame, level)


def test_patches_are_means_of_their_own_region_and_channel() -> None:
    """128 pixels a side are sampled one by one, so the means are exact."""
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    expected = image.reshape(16, 8, 16, 8, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(signature({"image": image})[0], expected, rtol=1e-6)


@pytest.mark.parametrize("channel", range(3))
def test_a_change_of_any_channel_is_a_change(channel: int) -> None:
    before, after = np.zeros((128, 128, 3), np.uint8), np.zeros((128, 128, 3), np.uint8)
    after[..., channel] = 255
    first, second = signature({"image": before}), signature({"image": after})
    assert compare(SceneMotion(first, 0.0), first, second, 0.1, GATE).changed == GRID * GRID


@pytest.mark.parametrize("size", [(480, 640), (1079, 1921), (97, 131)])
def test_a_patch_of_light_shows_where_it_is(size: tuple[int, int]) -> None:
    height, width = size
    image = np.zeros((*size, 3), np.uint8)
    image[: height // 16, -(width // 16) :, 1] = 255
    frame = signature({"image": image})[0]
    assert frame[0, 15, 1] > 220
    assert frame[..., 1].sum() == pytest.approx(frame[0, 15, 1], abs=1e-3)
    assert frame[..., 0].max() == 0.0


def test_a_view_of_an_array_needs_no_copy_and_is_left_alone() -> None:
    """Row padding and cropping make arrays that are not contiguous."""
    padded = np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    padded.flags.writeable = False
    crop = padded[:, 5:-5]
    np.testing.assert_array_equal(signature({"a": crop}), signature({"a": crop.copy()}))


def test_cameras_are_kept_apart_in_their_order() -> None:
    black, white = np.zeros((20, 30, 3), np.uint8), np.full((40, 10, 3), 255, np.uint8)
    both = signature({"left": black, "right": white})
    assert both.shape[0] == 2
    assert both[0].max() == 0
    assert both[1].min() == 255


# A synthetic arm: a bright bar that sweeps across a textured background.

BACKGROUND = np.random.default_rng(7).integers(60, 120, (240, 320, 3), dtype=np.uint8)


@functools.cache
def arm_at(column: float, block: tuple[int, int] | None = (150, 200), noise: float = 0.0) -> scene.Signature:
    image = BACKGROUND.astype(np.float64)
    left = int(column)
    image[:120, left : left + 40] = (200, 60, 40)
    if block is not None:
        image[block[0] : block[0] + 40, block[1] : block[1] + 40] = (30, 60, 220)
    if noise:
        image += np.random.default_rng(int(column * 100)).normal(0, noise, image.shape)
    return signature({"image": image.clip(0, 255).astype(np.uint8)})


@functools.cache
def swept(steps: int, noise: float = 0.0) -> SceneMotion:
    """The motion after `steps` frames at 10 Hz, in which the arm went 4 pixels at a time."""
    if steps == 0:
        return SceneMotion()
    return swept(steps - 1, noise).after(arm_at(4 * (steps - 1), noise=noise), (steps - 1) * 0.1)


@pytest.mark.parametrize("noise", [0.0, 8.0])
@pytest.mark.parametrize("age", [1, 2, 3])
def test_steady_motion_hardly_ever_raises_an_alarm(noise: float, age: int) -> None:
    alarms = 0
    for steps in range(12, 52):
        before, now = arm_at(4 * (steps - age), noise=noise), arm_at(4 * steps, noise=noise)
        alarms += compare(swept(steps, noise), before, now, age * 0.1, GATE).changed >= GATE.scene_patches
    assert alarms <= 2


@pytest.mark.parametrize("block", [(150, 240), (100, 200), None], ids=["aside", "up", "gone"])
def test_an_object_that_jumps_is_noticed_while_the_arm_sweeps(block: tuple[int, int] | None) -> None:
    for steps in range(12, 40):
        change = compare(swept(steps), arm_at(4 * (steps - 1)), arm_at(4 * steps, block), 0.1, GATE)
        assert change.changed >= GATE.scene_patches


def test_the_level_follows_the_speed_and_fades_when_the_arm_rests() -> None:
    motion = swept(20)
    moving = motion.expected((1, GRID, GRID), 0.1).max()
    for step in range(20, 40):
        motion = motion.after(arm_at(4 * 19), step * 0.1)
    assert moving > 10.0
    assert motion.expected((1, GRID, GRID), 0.1).max() < 0.05 * moving


def test_the_rate_does_not_depend_on_the_frame_rate() -> None:
    slow, fast = SceneMotion(), SceneMotion()
    for step in range(61):
        frame = np.full((1, GRID, GRID, 3), 2.0 * step, np.float32)
        fast = fast.after(frame, step / 30)
        if step % 6 == 0:
            slow = slow.after(frame, step / 30)
    assert slow.rate is not None
    assert fast.rate is not None
    np.testing.assert_allclose(slow.rate, 60.0, rtol=1e-4)
    np.testing.assert_allclose(fast.rate, 60.0, rtol=1e-4)


def test_two_frames_a_moment_apart_do_not_blind_the_guard() -> None:
    motion = swept(20).after(arm_at(4 * 20), 1.9 + 1e-4)
    change = compare(motion, arm_at(4 * 20), arm_at(4 * 21, (100, 200)), 0.1, GATE)
    assert change.changed >= GATE.scene_patches


def test_another_number_of_cameras_is_another_scene() -> None:
    one, two = np.zeros((1, GRID, GRID, 3), np.float32), np.zeros((2, GRID, GRID, 3), np.float32)
    change = compare(SceneMotion().after(one, 0.0), one, two, 0.1, GATE)
    assert change.changed == 2 * GRID * GRID
    assert math.isnan(change.level)
    assert SceneMotion().after(one, 0.0).after(one, 0.1).after(two, 0.2).rate is None


def test_time_that_does_not_move_starts_the_rate_anew() -> None:
    motion = swept(10)
    assert motion.after(arm_at(0), 0.2).rate is None
    assert motion.after(arm_at(0), math.nan).rate is None


@given(st.lists(st.tuples(st.integers(0, 255), st.floats(1e-6, 5.0)), min_size=1, max_size=30))
@settings(deadline=None)
def test_level_is_always_finite(frames: list[tuple[int, float]]) -> None:
    motion, now_s = SceneMotion(), 0.0
    first = np.zeros((1, GRID, GRID, 3), np.float32)
    for level, elapsed_s in frames:
        now_s += elapsed_s
        frame = np.full((1, GRID, GRID, 3), level, np.float32)
        change = compare(motion, first, frame, elapsed_s, GATE)
        assert math.isfinite(change.level)
        assert 0 <= change.changed <= GRID * GRID
        motion = motion.after(frame, now_s)

"""LIBERO's picture, pixel for pixel as TensorFlow makes it, and the rest of the official protocol. No LIBERO needed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from flashvla_ros.core.errors import CheckpointError, SimulationError
from flashvla_ros.sim.libero import pixels, protocol

EXPECTED = Path(__file__).parent / "data" / "libero.expected.npz"
needs_simplejpeg = pytest.mark.skipif(
    importlib.util.find_spec("simplejpeg") is None, reason="simplejpeg is not installed: make setup"
)


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(EXPECTED) as file:
        return dict(file)


@needs_simplejpeg
def test_jpeg_is_tensorflows_to_the_last_bit(expected: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(pixels.through_jpeg(expected["raw"][::-1, ::-1]), expected["decoded"])


@needs_simplejpeg
def test_the_whole_path_is_the_official_one(expected: dict[str, np.ndarray]) -> None:
    picture = pixels.official_picture(expected["raw"][::-1, ::-1])
    difference = np.abs(picture.astype(int) - expected["resized"])
    assert (picture.shape, picture.dtype) == ((224, 224, 3), np.uint8)
    assert difference.max() <= 1
    assert np.count_nonzero(difference) <= 20


@needs_simplejpeg
def test_a_picture_that_is_not_turned_is_another_one(expected: dict[str, np.ndarray]) -> None:
    picture = pixels.official_picture(expected["raw"])
    assert np.abs(picture.astype(int) - expected["resized"]).mean() > 20


@pytest.mark.skipif(importlib.util.find_spec("simplejpeg") is not None, reason="simplejpeg is installed")
def test_without_simplejpeg_the_remedy_is_named(expected: dict[str, np.ndarray]) -> None:
    with pytest.raises(SimulationError, match="make setup-libero"):
        pixels.official_picture(expected["raw"])


def test_a_flat_picture_stays_flat() -> None:
    weights = pixels._lanczos(256, 224)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize(("said", "sent"), [(-1.0, -1.0), (-0.2, -1.0), (0.0, 0.0), (0.01, 1.0), (1.0, 1.0)])
def test_the_gripper_is_open_closed_or_left_alone(said: float, sent: float) -> None:
    action = np.array([0.1, -1.4, 0.0, 2.0, 0.5, -0.5, said])
    np.testing.assert_array_equal(protocol.arm_action(action), [*action[:6], sent])


def test_steps_of_each_suite() -> None:
    steps = {name: suite.max_steps for name, suite in protocol.SUITES.items()}
    assert steps == {
        "libero_spatial": 220,
        "libero_object": 280,
        "libero_goal": 300,
        "libero_10": 520,
        "libero_90": 400,
    }


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("libero_object", "libero_object"),
        ("libero_object_permuted", "libero_object"),
        ("libero_10_swap", "libero_10"),
    ],
)
def test_a_variation_belongs_to_its_suite(name: str, base: str) -> None:
    assert protocol.base_suite(name).name == base
    assert protocol.split_task(f"{name}/9") == (name, 9)


@pytest.mark.parametrize("task", ["libero_object/10", "libero_object/", "libero_object/-1", "libero_object/soup"])
def test_an_unknown_task_is_refused(task: str) -> None:
    with pytest.raises(SimulationError, match="libero_object/0 to libero_object/9"):
        protocol.split_task(task)


def test_an_unknown_suite_is_refused_with_what_is_close() -> None:
    with pytest.raises(SimulationError, match="libero_object"):
        protocol.split_task("libero_objects/0")


def test_the_statistics_of_a_suite() -> None:
    assert protocol.statistics_key("libero_goal", ["libero_goal", "libero_goal_no_noops"]) == "libero_goal"
    assert protocol.statistics_key("libero_goal_swap", ["libero_goal_no_noops", "other"]) == "libero_goal_no_noops"
    with pytest.raises(CheckpointError, match=r"no statistics of libero_10 \(norm_stats: bridge_orig\)"):
        protocol.statistics_key("libero_10", ["bridge_orig"])

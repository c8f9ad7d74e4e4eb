"""The picture of a step: which patches are dimmed, what the banner and the bars say, and that nothing makes it fail."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fakes import SPEC, ScriptedPolicy
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvla_ros.control.step_result import StepResult
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import Box, Observation
from flashvla_ros.view import overlay
from flashvla_ros.vla.config import RESIZE_STRATEGIES
from flashvla_ros.vla.processor import ImageProcessor

HEIGHT, BANNER = overlay._HEIGHT, overlay._BANNER


def steps(
    count: int = 1,
    kept: tuple[int, ...] | None = tuple(range(40)),
    images: dict[str, np.ndarray] | None = None,
    **values: object,
) -> list[StepResult]:
    """Steps of the scripted policy on white pictures."""
    stepper = Stepper(ScriptedPolicy(kept=[kept]), SPEC)
    images = images or {"image": np.full((64, 64, 3), 255, np.uint8)}
    chosen = Settings().with_values({name.replace("__", "."): value for name, value in values.items()})
    observations = [Observation(images, "open the drawer", stamp_s=1.0 + 0.1 * index) for index in range(count)]
    return [stepper.step(observation, chosen) for observation in observations]


def patches(picture: np.ndarray, side: int = 8) -> np.ndarray:
    """Brightness at the middle of each patch of the first camera, [side, side]."""
    centres = np.arange(side) * HEIGHT // side + HEIGHT // (2 * side)
    return picture[BANNER + centres][:, centres].mean(axis=-1)


def test_kept_patches_are_bright_and_pruned_ones_dim():
    [result] = steps(kept=(0, 9, 63))
    bright = patches(overlay.draw(result)) > 200
    expected = np.zeros(64, dtype=bool)
    expected[[0, 9, 63]] = True
    np.testing.assert_array_equal(bright, expected.reshape(8, 8))


@pytest.mark.parametrize("kept", [None, tuple(range(64))])
def test_where_nothing_was_pruned_nothing_is_dimmed(kept):
    [result] = steps(kept=kept)
    assert patches(overlay.draw(result)).min() == 255


def seen_in(result: StepResult, **boxes: Box) -> StepResult:
    """The same step of a model that sees so much of each image."""
    return dataclasses.replace(result, inference=dataclasses.replace(result.inference, visible_boxes=boxes))


@pytest.mark.parametrize("kept", [None, (0, 63)])
def test_what_the_model_does_not_see_is_dim(kept):
    [result] = steps(kept=kept)
    bright = patches(overlay.draw(seen_in(result, image=(16.0, 16.0, 48.0, 48.0))), side=16) > 200
    seen = np.zeros((16, 16), dtype=bool)
    seen[4:12, 4:12] = True
    if kept is not None:
        seen[:] = False
        seen[4, 4] = seen[11, 11] = True
    np.testing.assert_array_equal(bright, seen)


@pytest.mark.parametrize("strategy", RESIZE_STRATEGIES)
@pytest.mark.parametrize("area", [1.0, 0.5])
@pytest.mark.parametrize(("height", "width"), [(60, 96), (96, 60), (61, 96), (480, 640)])
def test_a_patch_is_drawn_where_the_model_sees_it(strategy, area, height, width):
    processor = ImageProcessor(64, strategy, ((0.5, 0.5, 0.5),), ((0.5, 0.5, 0.5),), area)
    kept = np.sort(np.random.default_rng(0).choice(64, 32, replace=False))
    [result] = steps(kept=tuple(kept), images={"image": np.full((height, width, 3), 255, np.uint8)})
    drawn = overlay.draw(seen_in(result, image=processor.visible_box(height, width)))[BANNER : BANNER + HEIGHT]
    # An image whose colours say where each of its pixels is, as the model's preprocessing gives it.
    places = np.full((height, width, 3), 255.0)
    places[..., 0] *= ((np.arange(width) + 0.5) / width)[None]
    places[..., 1] *= ((np.arange(height) + 0.5) / height)[:, None]
    centres = processor.to_square(places.round().astype(np.uint8)).numpy()[4::8, 4::8].astype(float) / 255
    inside = centres[..., 2] > 0.9  # the rest is the letterbox's border
    assert inside.sum() >= 40 if strategy == "letterbox" else inside.all()
    x, y = centres[..., 0] * drawn.shape[1], centres[..., 1] * HEIGHT
    bright = drawn[y.astype(int).clip(0, HEIGHT - 1), x.astype(int).clip(0, drawn.shape[1] - 1), 0] > 200
    expected = np.isin(np.arange(64), kept).reshape(8, 8)
    np.testing.assert_array_equal(bright[inside], expected[inside])


def test_a_dry_run_and_a_scale_are_told_in_the_corner():
    def corner(**values: object) -> np.ndarray:
        [result] = steps(kept=None, images={"image": np.zeros((64, 64, 3), np.uint8)}, **values)
        return overlay.draw(result)[BANNER : BANNER + overlay._TAG]

    def width(strip: np.ndarray) -> int:
        return int((strip[2] == overlay._WARN).all(axis=-1).sum())

    assert not corner().any()
    dry, slow = corner(control__dry_run=True), corner(control__speed_scale=0.25)
    both = corner(control__dry_run=True, control__speed_scale=0.25)
    assert 0 < width(dry) < width(both)
    assert 0 < width(slow) < width(both)
    assert (corner(control__speed_scale=0.5) != slow).any()  # the number is in it


def test_infer_and_reuse_have_their_own_colour():
    results = steps(3, gate__max_reuse=5)
    assert [result.fresh for result in results] == [True, True, False]
    banners = [tuple(overlay.draw(result)[BANNER - 2, 2]) for result in results]
    assert banners == [overlay._INFER, overlay._INFER, overlay._REUSE]


def test_a_bar_is_green_on_the_side_of_its_threshold_that_allows_reuse():
    result = steps(3, gate__max_reuse=5)[-1]

    def bars(angle_deg: float, overlap: float) -> list[bool]:
        decision = dataclasses.replace(result.decision, angle_deg=angle_deg, corrected_overlap=overlap)
        panel = overlay.draw(dataclasses.replace(result, decision=decision))[BANNER + HEIGHT :]
        return [tuple(panel[y, 86]) == overlay._PASS for y in (15, 37)]

    assert bars(1.0, 0.9) == [True, True]
    assert bars(20.0, 0.9) == [False, True]
    assert bars(1.0, 0.1) == [True, False]
    nothing = overlay.draw(
        dataclasses.replace(result, decision=dataclasses.replace(result.decision, angle_deg=float("nan")))
    )
    assert tuple(nothing[BANNER + HEIGHT + 15, 86]) == overlay._DARK


def test_cameras_stand_side_by_side_with_their_own_share_of_the_tokens():
    masks = overlay.token_masks(np.array([0, 4, 7]), 8, cameras=2)
    np.testing.assert_array_equal(masks[0], [[True, False], [False, False]])
    np.testing.assert_array_equal(masks[1], [[True, False], [False, True]])
    white = np.full((32, 64, 3), 255, np.uint8)
    [result] = steps(kept=None, images={"front": white, "wrist": white})
    assert overlay.draw(result).shape[1] == 2 * 2 * HEIGHT


def test_tokens_that_make_no_square_are_not_drawn():
    assert overlay.token_masks(np.array([1, 2]), 7, cameras=1) == [None]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 700), st.sampled_from([0.0, 10.0, 180.0]), st.sampled_from([0.0, 1.0]))
def test_any_size_and_threshold_can_be_drawn(height, width, max_angle_deg, delta):
    images = {"image": np.zeros((height, width, 3), np.uint8)}
    for result in steps(3, images=images, gate__max_angle_deg=max_angle_deg, gate__delta=delta, gate__max_reuse=9):
        picture = overlay.draw(result)
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3
        assert picture.shape[1] <= 4 * HEIGHT


def test_where_a_score_judges_its_need_is_shown_and_no_threshold_that_would_have_let_it_pass() -> None:
    *_, result = steps(4, gate__calibration="online", calibration__score=(0.0,) * 8)
    result = dataclasses.replace(result, calibration=dataclasses.replace(result.calibration, permissiveness=0.5))
    panel = overlay.draw(result)[-overlay._PANEL :]
    assert result.trial.need > 0.5
    assert (panel == overlay._FAIL).all(axis=-1).any()
    assert not (panel == overlay._PASS).all(axis=-1).any()

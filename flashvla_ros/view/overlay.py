"""One control step as a picture: kept tokens bright, pruned ones dimmed, what the gate decided and by how much.

Pure: a step result in, an RGB image out. OpenCV's fonts have no Greek letters.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from flashvla_ros.control.step_result import StepResult
from flashvla_ros.core.types import Box, ImageArray, IntArray

_HEIGHT = 384  # of a camera's picture
_BANNER, _PANEL, _TAG = 34, 52, 26
DIM = 0.28  # what is left of a pruned token's brightness
_Colour = tuple[int, int, int]
_INFER, _REUSE, _WARN = (52, 101, 164), (56, 142, 60), (251, 192, 45)
_DARK, _LIGHT, _GREY, _PASS, _FAIL = (24, 24, 27), (240, 240, 240), (110, 110, 115), (102, 187, 106), (239, 108, 80)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw(result: StepResult) -> ImageArray:
    """Return the picture of a step, uint8 [H, W, 3]: a banner, the cameras side by side, two bars.

    A tag in the corner says where the command is not sent, or is not followed at full speed.

    The tokens shown are those of the fresh result behind the command. The square of patches lies where the model's
    preprocessing put it: a patch is a rectangle where the image was squeezed, what was cut off is dim, and patches on
    a border that was added are outside of the picture.
    """
    images, inference = result.observation.images, result.inference
    masks = token_masks(inference.kept, inference.visual_tokens, len(images))
    shown = [
        _camera(image, mask, inference.visible_boxes.get(camera))
        for (camera, image), mask in zip(images.items(), masks, strict=True)
    ]
    row = np.hstack(shown)
    _tag(row, result)
    return np.vstack([_banner(result, row.shape[1]), row, _panel(result, row.shape[1])])


def token_masks(kept: IntArray | None, visual_tokens: int, cameras: int) -> list[NDArray[np.bool_] | None]:
    """Return each camera's square of patches, bool [g, g], true where the token was kept.

    None for every camera where nothing was pruned or the tokens do not form one square per camera.
    """
    side = math.isqrt(visual_tokens // cameras)
    if kept is None or visual_tokens != cameras * side * side:
        return [None] * cameras
    flat = np.zeros(visual_tokens, dtype=bool)
    flat[kept] = True
    return list(flat.reshape(cameras, side, side))


def _camera(image: ImageArray, mask: NDArray[np.bool_] | None, visible: Box | None) -> ImageArray:
    height, width = image.shape[:2]
    size = (min(max(round(width * _HEIGHT / height), _HEIGHT // 2), 4 * _HEIGHT), _HEIGHT)
    shown = cv2.resize(image, size, interpolation=cv2.INTER_AREA if height > _HEIGHT else cv2.INTER_CUBIC)
    bright = kept_pixels(mask, visible, image=(width, height), size=size)
    if bright.all():
        return shown  # type: ignore[return-value]
    return (shown * np.where(bright, 1.0, DIM)[..., None]).astype(np.uint8)  # type: ignore[no-any-return]


def kept_pixels(
    mask: NDArray[np.bool_] | None, visible: Box | None, *, image: tuple[int, int], size: tuple[int, int]
) -> NDArray[np.bool_]:
    """Return where a picture shows what the model kept, bool [height, width] of `size`.

    Args:
        mask: Of the patches [g, g]; None: all were kept.
        visible: What the patches cover of the image; None: all of it.
        image: Width and height of the image.
        size: Width and height of the picture that is made of it.
    """
    left, top, right, bottom = visible or (0.0, 0.0, *image)
    patches = np.ones((1, 1), dtype=bool) if mask is None else mask
    columns, across = _patches(size[0], left / image[0], right / image[0], patches.shape[1])
    rows, down = _patches(size[1], top / image[1], bottom / image[1], patches.shape[0])
    return patches[rows][:, columns] & down[:, None] & across


def _patches(length: int, start: float, stop: float, count: int) -> tuple[IntArray, NDArray[np.bool_]]:
    """Return for each pixel along a side its patch of `count` between two shares of it, and whether it has one."""
    place = ((np.arange(length) + 0.5) / length - start) / (stop - start) * count
    return np.clip(place, 0, count - 1).astype(np.int64), (place >= 0) & (place < count)


def _tag(row: ImageArray, result: StepResult) -> None:
    """Say in the corner what keeps the robot from following the policy at full speed."""
    words = ["DRY RUN"] if result.settings.control.dry_run else []
    if result.speed_scale != 1.0:
        words.append(f"SPEED {result.speed_scale:.0%}")
    if words:
        text = "  ".join(words)
        width = cv2.getTextSize(text, _FONT, 0.6, 2)[0][0]
        cv2.rectangle(row, (0, 0), (width + 19, _TAG), _WARN, -1)
        _text(row, text, 10, 19, 0.6, 2, colour=_DARK)


def _banner(result: StepResult, width: int) -> ImageArray:
    strip = np.full((_BANNER, width, 3), _INFER if result.fresh else _REUSE, dtype=np.uint8)
    decision = "INFER" if result.fresh else "REUSE" if result.reused else "FOLLOW"
    kept, tokens = result.inference.kept, result.inference.visual_tokens
    count = f"{tokens if kept is None else len(kept)}/{tokens}"
    _text(strip, decision, 10, 23, 0.65, 2)
    _text(strip, _why(result), 100, 23, 0.5)
    _text(strip, count, width - 12 - cv2.getTextSize(count, _FONT, 0.5, 1)[0][0], 23, 0.5)
    return strip


def _why(result: StepResult) -> str:
    """The condition that made the model run, or how far the reuse has gone."""
    decision, state = result.decision, result.calibration
    if result.fresh:
        why = str(decision.reason).replace("_", " ")
    elif result.reused:
        why = f"{decision.reused_in_a_row} of {decision.settings.max_reuse}, {decision.age_s:.2f} s old"
    else:
        why = f"row {result.chunk_row + 1} of {len(result.command)}, {decision.age_s:.2f} s old"
    if state is None:
        return why
    return f"{why}; level {state.permissiveness:.2f}, certified {state.certified_level:.2f}"


def _panel(result: StepResult, width: int) -> ImageArray:
    panel = np.full((_PANEL, width, 3), _DARK, dtype=np.uint8)
    decision, gate, trial = result.decision, result.decision.settings, result.trial
    if result.calibration is not None and trial is not None and trial.signs is not None:  # the score decides
        _bar(panel, 19, "need", trial.need, result.calibration.permissiveness, 1.0, below=True)
        return panel
    angle_full = max(2.0 * gate.max_angle_deg, 1.0)
    _bar(panel, 8, "angle", decision.angle_deg, gate.max_angle_deg, angle_full, below=True, unit=" deg")
    _bar(panel, 30, "overlap", decision.corrected_overlap, gate.delta, 1.0, below=False)
    return panel


def _bar(
    panel: ImageArray, y: int, name: str, value: float, threshold: float, full: float, *, below: bool, unit: str = ""
) -> None:
    """One value with its threshold as a tick; green on the side of the tick that allows reuse."""
    left, right, height = 84, panel.shape[1] - 84, 14
    _text(panel, name, 10, y + 11, 0.45)
    cv2.rectangle(panel, (left, y), (right, y + height), _GREY, 1)
    tick = left + round((right - left) * min(threshold / full, 1.0))
    if not math.isnan(value):
        allowed = value < threshold if below else value >= threshold
        end = left + round((right - left) * min(max(value / full, 0.0), 1.0))
        cv2.rectangle(panel, (left + 1, y + 1), (max(end, left + 1), y + height - 1), _PASS if allowed else _FAIL, -1)
        _text(panel, f"{value:.{1 if unit else 2}f}{unit}", right + 8, y + 11, 0.42)
    cv2.line(panel, (tick, y - 2), (tick, y + height + 2), _LIGHT, 1)


def _text(
    image: ImageArray, text: str, x: int, y: int, scale: float, thickness: int = 1, *, colour: _Colour = _LIGHT
) -> None:
    cv2.putText(image, text, (x, y), _FONT, scale, colour, thickness, cv2.LINE_AA)

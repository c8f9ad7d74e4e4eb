"""The dense pass: what the model says of every frame of a recording, kept without the frames.

The decoder sees every token (``pruning.drop`` is off) while the tokens are still scored and selected, so one pass gives
the action that each frame deserves and the set that the gate compares. Selection comes before anything is dropped, so
the sets are those of the pruned model.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from flashvla_ros.bags.frames import Frame
from flashvla_ros.core.errors import BagError
from flashvla_ros.core.policy import Policy, Request
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import PruningSettings, Settings
from flashvla_ros.core.types import ActionSpec, FloatArray, ImageArray, Inference, IntArray
from flashvla_ros.gate.memory import FreshResult, GateInput

THUMBNAIL_WIDTH = 160


@dataclasses.dataclass(frozen=True, order=True)
class CostlyFrame:
    """A frame whose action is far from that of the frame before.

    Attributes:
        cost: Largest difference of any dimension, normalised.
        index: Number of the frame.
        jpeg: A small picture of the first camera.
    """

    cost: float
    index: int
    jpeg: bytes = dataclasses.field(compare=False)


class Gallery:
    """Keeps the costliest frames of a stream, no two closer together than `apart` frames."""

    def __init__(self, size: int = 8, apart: int = 5) -> None:
        self._size = size
        self._apart = apart
        self.frames: list[CostlyFrame] = []

    def offer(self, cost: float, index: int, image: ImageArray) -> None:
        """Consider a frame; its picture is made only if it is kept."""
        near = [frame for frame in self.frames if index - frame.index < self._apart]
        rivals = near or (self.frames[-1:] if len(self.frames) == self._size else [])
        if cost <= 0.0 or any(frame.cost >= cost for frame in rivals):
            return
        kept = [frame for frame in self.frames if frame not in rivals]
        self.frames = sorted([*kept, CostlyFrame(cost, index, thumbnail(image))], reverse=True)


def thumbnail(image: ImageArray) -> bytes:
    """Return a JPEG of an RGB image, 160 pixels wide."""
    height, width, _ = image.shape
    small = cv2.resize(
        image, (THUMBNAIL_WIDTH, max(1, round(height * THUMBNAIL_WIDTH / width))), interpolation=cv2.INTER_AREA
    )
    _, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, 80))
    return data.tobytes()


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """What a sweep needs of a recording's F frames; about 4 kB a frame.

    Attributes:
        inputs: [F] what the gate sees of each frame: instruction, stamp, signature.
        times_ns: [F] when each frame was recorded.
        resets: [F] what emptied the gate's memory before each frame, None where nothing did.
        actions: [F, T, D] the dense model's normalised actions.
        kept: [F] indices of the selected visual tokens; None where nothing was scored.
        visual_tokens: N, from which they were selected.
        pruning: The settings by which they were selected.
        spec: What the dimensions of an action mean.
        worst: Frames at which repeating the action before would have cost most, most costly first.
        confidences: [F] of the dense model; None: unknown.
    """

    inputs: list[GateInput]
    times_ns: NDArray[np.int64]
    resets: list[Reason | None]
    actions: NDArray[np.float64]
    kept: list[NDArray[np.int16]] | None
    visual_tokens: int
    pruning: PruningSettings
    spec: ActionSpec
    worst: list[CostlyFrame]
    confidences: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    @functools.cached_property
    def stamps_s(self) -> FloatArray:
        """[F] stamps of the frames."""
        return np.asarray([seen.stamp_s for seen in self.inputs])

    def fresh(self, index: int) -> FreshResult:
        """Return what the gate remembers after the model was run on a frame."""
        normalized = self.actions[index]
        kept = None if self.kept is None else self.kept[index].astype(np.int64)
        confidence = math.nan if self.confidences is None else float(self.confidences[index])
        inference = Inference(
            normalized, normalized, np.empty(0, dtype=np.int64), kept, self.visual_tokens, confidence=confidence
        )
        return FreshResult.of(inference, self.inputs[index], self.spec, self.pruning)


def collect(
    frames: Iterable[Frame], policy: Policy, settings: Settings, spec: ActionSpec, on_frame: Callable[[], object]
) -> Features:
    """Run the dense model once over all frames, one at a time.

    Args:
        frames: The recording.
        policy: The model.
        settings: Its pruning settings say how tokens are selected.
        spec: What the dimensions of its action mean.
        on_frame: Called after each frame, for progress.

    Raises:
        BagError: The recording has no frames.
        ObservationError: The policy cannot use an observation.
    """
    pruning = dataclasses.replace(settings.pruning, drop=False)
    inputs: list[GateInput] = []
    times_ns: list[int] = []
    resets: list[Reason | None] = []
    inferences: list[tuple[FloatArray, IntArray | None, float]] = []
    gallery = Gallery()
    inference: Inference | None = None
    for frame in frames:
        resets.append(frame.reset)
        previous = inference if frame.reset is None else None
        inference = policy.infer(Request(frame.observation, pruning, previous))
        if inferences:
            cost = np.abs(inference.normalized - inferences[-1][0]).max()
            gallery.offer(float(cost), len(inferences), next(iter(frame.observation.images.values())))
        inputs.append(GateInput.of(frame.observation))
        times_ns.append(frame.time_ns)
        inferences.append((inference.normalized, inference.kept, inference.confidence))
        on_frame()
    if inference is None:
        raise BagError("the recording has no frames")
    kept = [tokens.astype(np.int16) for _, tokens, _ in inferences if tokens is not None]
    return Features(
        inputs=inputs,
        times_ns=np.asarray(times_ns, dtype=np.int64),
        resets=resets,
        actions=np.stack([action for action, _, _ in inferences]),
        kept=kept if len(kept) == len(inputs) else None,
        visual_tokens=inference.visual_tokens,
        pruning=settings.pruning,
        spec=spec,
        worst=gallery.frames,
        confidences=np.array([confidence for _, _, confidence in inferences]),
    )

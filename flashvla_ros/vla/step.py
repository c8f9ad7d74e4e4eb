"""One inference as all architectures run it: images, prompt and visual tokens, then what is their own."""

from __future__ import annotations

import abc
import copy
import dataclasses
import itertools
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from flashvla_ros.core.errors import CheckpointError, ObservationError
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import ModelSettings, PruningSettings
from flashvla_ros.core.types import Draft, ImageArray, Inference, IntArray, Observation
from flashvla_ros.vla.action_codec import ActionCodec
from flashvla_ros.vla.backend import Backend
from flashvla_ros.vla.checkpoint import Progress, load_model
from flashvla_ros.vla.config import OpenVLAConfig
from flashvla_ros.vla.draft import Verdict, judge, usable_tokens
from flashvla_ros.vla.engine.base import Start, make_engine
from flashvla_ros.vla.model import NOTHING, PrismaticVLM, says_nothing
from flashvla_ros.vla.processor import ImageProcessor, PromptEncoder
from flashvla_ros.vla.pruning.select import METHODS
from flashvla_ros.vla.pruning.temporal import patch_cosines
from flashvla_ros.vla.query import CAUSAL, Query
from flashvla_ros.vla.statistics import Bounds

_LOG = logging.getLogger(__name__)
_WARM_UP_INSTRUCTION = "pick up the object"


class VLAPolicy(abc.ABC):
    """Implements :class:`flashvla_ros.core.policy.Policy`. The same request gives the same result.

    Args:
        model: In evaluation mode.
        processor: Of its images.
        prompts: Of its instructions.
        backend: What it runs on.
        bounds: From normalised actions to the robot's units.
        tokens: Most tokens that are decoded after the prompt.

    Attributes:
        chunk_size: T, the time steps of an action.
        codec: From tokens to normalised values.
        layout: Of the sequence.
        state_names: What of the robot's state an observation must tell, in the order of training.
        decoded: Most tokens that are decoded one after the other, each in a pass over the weights of its own.
    """

    chunk_size = 1
    layout = CAUSAL
    state_names: tuple[str, ...] = ()

    def __init__(
        self,
        model: PrismaticVLM,
        processor: ImageProcessor,
        prompts: PromptEncoder,
        backend: Backend,
        *,
        bounds: Bounds,
        tokens: int,
    ) -> None:
        self.model = model
        self.processor = processor
        self.prompts = prompts
        self.backend = backend
        self.bounds = bounds
        self.codec = ActionCodec(model.config.action_vocab_size, model.config.n_action_bins)
        self.engine = make_engine(model, tokens, backend)
        self.decoded = tokens
        self._on_stage: Callable[[str], None] = lambda _stage: None
        self._prompt: tuple[tuple[str, str], list[int]] | None = None

    @property
    def action_size(self) -> int:
        """D, the number of action dimensions."""
        return self.bounds.size

    @abc.abstractmethod
    def _answer(self, visual: Tensor, query: Query, request: Request, stages: Stages) -> Inference:
        """Run the decoder over the visual tokens [1, N, d] and make an action of what it says.

        What all architectures tell alike, from the timings on, is filled in later.
        """

    @property
    def cameras(self) -> int:
        """C, the number of images of an observation."""
        return self.model.config.num_images_in_input

    @property
    def visual_tokens(self) -> int:
        """N, the number of visual tokens before pruning."""
        return self.model.config.visual_tokens

    def reporting(self, on_stage: Callable[[str], None]) -> Self:
        """Return the same policy, on the same model and engine, that calls `on_stage` with each stage as it ends."""
        policy = copy.copy(self)
        policy._on_stage = on_stage
        return policy

    def on(self, backend: Backend) -> Self:
        """Return the same policy on the same model with another engine."""
        policy = copy.copy(self)
        policy.backend, policy.engine = backend, make_engine(self.model, self.decoded, backend)
        return policy

    def reference(self) -> Self:
        """Return the same policy on the plain modules; itself where it runs on them."""
        if self.backend.engine == "eager":
            return self
        return self.on(dataclasses.replace(self.backend, engine="eager"))

    def warm_up(self, pruning: PruningSettings, instruction: str = "") -> None:
        """Run on noise, so that the first real observation does not pay for allocations, lazy set-up and recording.

        Args:
            pruning: Of the steps to come.
            instruction: Of the steps to come, where it is known: its length decides which buffers are used.
        """
        image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
        try:
            self._encode(instruction)
        except ObservationError:  # empty, or refused when a step asks for it
            instruction = _WARM_UP_INSTRUCTION
        images = {f"warm_up_{number}": image for number in range(self.cameras)}
        seen = Observation(images, instruction, 0.0, joint_positions=dict.fromkeys(self.state_names, 0.0))
        warm = False
        while not warm:
            first, warm = self.infer(Request(seen, pruning)), self.engine.warm
            self.infer(Request(seen, pruning, draft=Draft(first.tokens)))
            warm = warm and self.engine.warm

    @torch.inference_mode()
    def infer(self, request: Request) -> Inference:
        """Run the model once.

        Its timings are those of preprocess, vision, prefill, decode and, where tokens are scored, scoring.

        Raises:
            ActionError: The model computes nothing that could be an action.
            ObservationError: Not as many cameras as the checkpoint sees, an image that cannot be used, or such an
                instruction.
            SettingsError: ``pruning.layer`` is not a layer of this decoder.
        """
        observation, pruning, device = request.observation, request.pruning, self.backend.device
        with self.backend.current():
            stages = Stages(self.backend, self._on_stage)
            _check_images(observation, self.cameras)
            images = observation.images
            squares = [self.processor.to_square(image, device, slot) for slot, image in enumerate(images.values())]
            pixels = self.processor.normalize(*squares).to(self.backend.dtype)
            picture, similarity = self._compare(squares, pruning, request.previous)
            prompt = self._encode(observation.instruction, self._history(request))
            stages.done("preprocess")
            self._before_vision(prompt)
            visual = self.engine.visual_tokens(pixels)
            stages.done("vision")
            query = Query(prompt, pruning, key=round(observation.stamp_s * 1e9), similarity=similarity)
            answer = self._answer(visual, query, request, stages)
            boxes = {name: self.processor.visible_box(*image.shape[:2]) for name, image in images.items()}
            return dataclasses.replace(answer, timings_s=stages.seconds(), picture=picture, visible_boxes=boxes)

    def _prefilled(
        self, visual: Tensor, query: Query, draft: Draft | None, stages: Stages
    ) -> tuple[Start, Verdict, int]:
        """Run the prefill; return what a draft came to, and how many of its tokens were run."""
        drafted = usable_tokens(draft, self.decoded, self.model.config.text_config["vocab_size"])
        query = dataclasses.replace(query, drafted=drafted, layout=self.layout)
        start = self.engine.prefill(visual, query, done=stages.done)
        stages.done("prefill")
        if draft is None or not drafted:
            return start, Verdict((), 0, 0), 0
        # Apart from the end, the one place where the host waits.
        return start, judge(drafted, start.choices.tolist(), draft, self.codec), len(drafted)

    def _compare(
        self, squares: list[Tensor], pruning: PruningSettings, previous: Inference | None
    ) -> tuple[ImageArray | None, Tensor | None]:
        """Return the pictures to compare the next frame with, and the similarity [N] to those of `previous`."""
        if pruning.method == "none" or not METHODS[pruning.method].needs_frame:
            return None, None
        pictures = torch.stack(squares).cpu().numpy()
        if previous is None or previous.picture is None:
            return pictures, None
        side = math.isqrt(self.model.config.towers[0].tokens)
        pairs = zip(pictures, previous.picture, strict=True)
        return pictures, torch.from_numpy(np.concatenate([patch_cosines(one, other, side) for one, other in pairs]))

    def _history(self, request: Request) -> str:  # noqa: ARG002 - for those that tell it
        """Return what the prompt tells of the step before."""
        return ""

    def _before_vision(self, prompt: list[int]) -> None:  # noqa: B027 - most have none
        """Prepare towers that are told of the prompt."""

    def _encode(self, instruction: str, history: str = "") -> list[int]:
        """Encode the instruction; the last one is kept, since it seldom changes."""
        if self._prompt is None or self._prompt[0] != (instruction, history):
            self._prompt = (instruction, history), self.prompts(instruction, history)
        return self._prompt[1]


class Stages:
    """Seconds that each stage of one inference took: on CUDA those of the device, which is never waited for between."""

    def __init__(self, backend: Backend, on_stage: Callable[[str], None]) -> None:
        self._cuda = backend.device.type == "cuda"
        self._on_stage = on_stage
        self._marks: list[tuple[str, Any]] = []
        self._mark("")

    def done(self, name: str) -> None:
        """Mark the end of a stage."""
        self._mark(name)
        self._on_stage(name)

    def _mark(self, name: str) -> None:
        mark: Any = torch.cuda.Event(enable_timing=True) if self._cuda else time.perf_counter()
        if self._cuda:
            mark.record()
        self._marks.append((name, mark))

    def seconds(self) -> dict[str, float]:
        """Return the time of each stage by its name; parts of one add up."""
        if self._cuda:
            self._marks[-1][1].synchronize()
        totals: dict[str, float] = {}
        for (_, before), (name, mark) in itertools.pairwise(self._marks):
            elapsed_s = before.elapsed_time(mark) / 1e3 if self._cuda else mark - before
            totals[name] = totals.get(name, 0.0) + elapsed_s
        return totals


class Loaded(NamedTuple):
    """What all architectures have."""

    model: PrismaticVLM
    processor: ImageProcessor
    prompts: PromptEncoder
    backend: Backend


def load_parts(
    folder: Path, config: OpenVLAConfig, settings: ModelSettings, rows: int, progress: Progress | None
) -> Loaded:
    """Load network, image processor and prompts.

    Args:
        folder: Of the checkpoint.
        config: Of the checkpoint.
        settings: Device, type, attention, threads and the centre crop.
        rows: Of the sequence besides visual tokens and prompt.
        progress: Told of each file; None: the log is.
    """
    started = time.monotonic()
    processor = dataclasses.replace(ImageProcessor.from_folder(folder, config), crop_area=settings.center_crop)
    prompts = PromptEncoder.from_folder(folder, config, rows)
    backend = Backend.resolve(settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    try:
        model = load_model(folder, config, backend.device, backend.dtype, backend.attention, progress or _log_progress)
    except torch.OutOfMemoryError as error:
        raise CheckpointError(f"{folder} does not fit into the memory of {backend.device}") from error
    _LOG.info("loaded %s in %.1f s: %s %s", folder, time.monotonic() - started, backend.device, backend.dtype)
    return Loaded(model, processor, prompts, backend)


def _log_progress(file: str, number: int, count: int) -> None:
    _LOG.info("reading %s, file %d of %d", file, number, count)


def _check_images(observation: Observation, count: int) -> None:
    if len(observation.images) != count:
        sees = "one camera" if count == 1 else f"{count} cameras"
        names = ", ".join(observation.images) or "none"
        raise ObservationError(f"this checkpoint sees {sees}, got {len(observation.images)}: {names}")
    for camera, image in observation.images.items():
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ObservationError(
                f"image of camera {camera!r} must be RGB, uint8 [H, W, 3], got {image.dtype} {list(image.shape)}"
            )


def to_host(tokens: Tensor, certainty: Tensor, kept: Tensor | None) -> tuple[IntArray, float, IntArray | None]:
    """Copy tokens, the least of their probabilities and indices of kept visual tokens in one transfer."""
    least = certainty.min().double().view(torch.int64)[None]  # its bits travel as an integer
    parts = [least, tokens] if kept is None else [least, tokens, kept]
    copied, end = torch.cat(parts).cpu().numpy(), 1 + len(tokens)
    return copied[1:end], float(copied[:1].view(np.float64)[0]), None if kept is None else copied[end:]


def check_tokens(tokens: IntArray) -> None:
    """Refuse, with :class:`ActionError`, an action of which the model's logits say nothing."""
    if (silent := tokens == NOTHING).any():
        raise says_nothing(f"the logits of action token {int(silent.argmax())} are not finite or all equal")

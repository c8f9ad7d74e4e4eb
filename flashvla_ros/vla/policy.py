"""The policy that runs an OpenVLA checkpoint: the one place where its parts are put together."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flashvla_ros.core.errors import ActionError, CheckpointError, ObservationError
from flashvla_ros.core.paths import share_path
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import ModelSettings, PruningSettings
from flashvla_ros.core.types import Draft, ImageArray, Inference, IntArray, Observation
from flashvla_ros.vla.action_codec import ActionCodec
from flashvla_ros.vla.backend import Backend
from flashvla_ros.vla.checkpoint import Progress, load_config, load_model
from flashvla_ros.vla.draft import Verdict, judge, usable_tokens
from flashvla_ros.vla.engine.base import Start, make_engine
from flashvla_ros.vla.model import NOTHING, OpenVLA
from flashvla_ros.vla.processor import ImageProcessor, PromptEncoder
from flashvla_ros.vla.pruning.select import METHODS
from flashvla_ros.vla.pruning.temporal import patch_cosines
from flashvla_ros.vla.query import Query
from flashvla_ros.vla.tokenizer import load_tokenizer

_LOG = logging.getLogger(__name__)
_WARM_UP_INSTRUCTION = "pick up the object"


class OpenVLAPolicy:
    """Implements :class:`flashvla_ros.core.policy.Policy`. The same request gives the same result."""

    def __init__(
        self, model: OpenVLA, processor: ImageProcessor, prompts: PromptEncoder, codec: ActionCodec, backend: Backend
    ) -> None:
        self.model = model
        self.processor = processor
        self.prompts = prompts
        self.codec = codec
        self.backend = backend
        self.engine = make_engine(model, codec.size, backend)
        self._on_stage: Callable[[str], None] = lambda _stage: None
        self._prompt: tuple[str, list[int]] | None = None

    @classmethod
    def load(cls, settings: ModelSettings, progress: Progress | None = None) -> OpenVLAPolicy:
        """Load the checkpoint that `settings` name, or the demo policy, onto its device.

        Progress goes to the log unless `progress` takes it.

        Raises:
            CheckpointError: The folder is not a complete OpenVLA checkpoint, or does not fit into memory.
            SettingsError: This machine lacks the device or attention implementation.
        """
        started = time.monotonic()
        folder = checkpoint_folder(settings)
        config = load_config(folder)
        codec = ActionCodec.from_config(config, settings.unnorm_key)
        processor = dataclasses.replace(ImageProcessor.from_folder(folder, config), crop_area=settings.center_crop)
        longest = min(config.llm_max_length, config.llama().max_position_embeddings)
        prompts = PromptEncoder(load_tokenizer(folder), longest - config.visual_tokens - codec.size)
        backend = Backend.resolve(settings)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        try:
            report = progress or _log_progress
            model = load_model(folder, config, backend.device, backend.dtype, backend.attention, report)
        except torch.OutOfMemoryError as error:
            raise CheckpointError(f"{folder} does not fit into the memory of {backend.device}") from error
        seconds = time.monotonic() - started
        _LOG.info("loaded %s in %.1f s: %s %s", folder, seconds, backend.device, backend.dtype)
        return cls(model, processor, prompts, codec, backend)

    @property
    def action_size(self) -> int:
        """D, the number of action dimensions."""
        return self.codec.size

    @property
    def cameras(self) -> int:
        """C, the number of images of an observation."""
        return self.model.config.num_images_in_input

    @property
    def visual_tokens(self) -> int:
        """N, the number of visual tokens before pruning."""
        return self.model.config.visual_tokens

    def reporting(self, on_stage: Callable[[str], None]) -> OpenVLAPolicy:
        """Return the same policy, on the same model and engine, that calls `on_stage` with each stage as it ends."""
        policy = copy.copy(self)
        policy._on_stage = on_stage
        return policy

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
        seen = Observation(images, instruction, stamp_s=0.0)
        first = self.infer(Request(seen, pruning))
        self.infer(Request(seen, pruning, draft=Draft(first.tokens)))

    @torch.inference_mode()
    def infer(self, request: Request) -> Inference:
        """Run the model once.

        Its timings are those of preprocess, vision, prefill, decode and, where tokens are scored, scoring.

        Raises:
            ActionError: The model computes nothing that could be an action.
            ObservationError: Not as many cameras as the checkpoint sees, not an RGB image, or an instruction that is
                empty or too long.
            SettingsError: ``pruning.layer`` is not a layer of this decoder.
        """
        with self.backend.current():
            return self._infer(request)

    def _infer(self, request: Request) -> Inference:
        observation, pruning, draft = request.observation, request.pruning, request.draft
        stages = _Stages(self.backend, self._on_stage)
        device = self.backend.device
        images = _checked_images(observation, self.cameras)
        squares = [self.processor.to_square(image, device, slot) for slot, image in enumerate(images)]
        pixels = self.processor.normalize(*squares).to(self.backend.dtype)
        picture, similarity = self._compare(squares, pruning, request.previous)
        prompt = self._encode(observation.instruction)
        stages.done("preprocess")
        visual = self.engine.visual_tokens(pixels)
        stages.done("vision")
        key = round(observation.stamp_s * 1e9)
        drafted = usable_tokens(draft, self.action_size, self.model.config.llama().vocab_size)
        query = Query(prompt, pruning, drafted, key, similarity)
        start = self.engine.prefill(visual, query, done=stages.done)
        stages.done("prefill")
        verdict = self._judge(draft, drafted, start) if draft and drafted else Verdict((), 0, 0)
        tokens, kept = _to_host(self.engine.decode(start, verdict.tokens), start.kept)
        stages.done("decode")
        _check_tokens(tokens)
        normalized = self.codec.decode(tokens)[None]
        return Inference(
            action=self.codec.unnormalize(normalized),
            normalized=normalized,
            tokens=tokens,
            kept=kept,
            visual_tokens=self.visual_tokens,
            timings_s=stages.seconds(),
            picture=picture,
            draft_tokens=len(drafted),
            draft_accepted=verdict.accepted,
            draft_near=verdict.near,
            visible_boxes={
                name: self.processor.visible_box(*image.shape[:2]) for name, image in observation.images.items()
            },
        )

    def _judge(self, draft: Draft, drafted: tuple[int, ...], start: Start) -> Verdict:
        """Compare the draft with the model's own choices; apart from the end, the one place where the host waits."""
        return judge(drafted, start.choices.tolist(), draft, self.codec)

    def _compare(
        self, squares: list[Tensor], pruning: PruningSettings, previous: Inference | None
    ) -> tuple[ImageArray | None, Tensor | None]:
        """Return the pictures to compare the next frame with, and the similarity [N] to those of `previous`."""
        if pruning.method == "none" or not METHODS[pruning.method].needs_frame:
            return None, None
        pictures = torch.stack(squares).cpu().numpy()
        if previous is None or previous.picture is None:
            return pictures, None
        side = self.model.config.patches_per_side
        pairs = zip(pictures, previous.picture, strict=True)
        return pictures, torch.from_numpy(np.concatenate([patch_cosines(one, other, side) for one, other in pairs]))

    def _encode(self, instruction: str) -> list[int]:
        """Encode the instruction; the last one is kept, since it seldom changes."""
        if self._prompt is None or self._prompt[0] != instruction:
            self._prompt = instruction, self.prompts(instruction)
        return self._prompt[1]


class _Stages:
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
        if self._cuda:
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
            self._marks.append((name, mark))
        else:
            self._marks.append((name, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """Return the time of each stage by its name; parts of one add up."""
        if self._cuda:
            self._marks[-1][1].synchronize()
        totals: dict[str, float] = {}
        for (_, before), (name, mark) in itertools.pairwise(self._marks):
            elapsed_s = before.elapsed_time(mark) / 1e3 if self._cuda else mark - before
            totals[name] = totals.get(name, 0.0) + elapsed_s
        return totals


def _to_host(tokens: Tensor, kept: Tensor | None) -> tuple[IntArray, IntArray | None]:
    """Copy both in one transfer."""
    if kept is None:
        return tokens.cpu().numpy().copy(), None
    both = torch.cat([tokens, kept]).cpu().numpy()
    return both[: len(tokens)], both[len(tokens) :]


def _check_tokens(tokens: IntArray) -> None:
    """Refuse an action of which the model's logits say nothing: the command made of it would look like any other."""
    if (tokens == NOTHING).any():
        raise ActionError(
            f"the logits of action token {int((tokens == NOTHING).argmax())} are not finite or all equal, so the model "
            f"says nothing: its weights are broken, or too large for model.dtype; the command is withheld"
        )


def checkpoint_folder(settings: ModelSettings) -> Path:
    """Return the folder of ``model.checkpoint``, that of the demo policy where it is empty."""
    return Path(settings.checkpoint).expanduser() if settings.checkpoint else share_path("models", "demo")


def _log_progress(file: str, number: int, count: int) -> None:
    _LOG.info("reading %s, file %d of %d", file, number, count)


def _checked_images(observation: Observation, count: int) -> list[ImageArray]:
    if len(observation.images) != count:
        sees = "one camera" if count == 1 else f"{count} cameras"
        names = ", ".join(observation.images) or "none"
        raise ObservationError(f"this checkpoint sees {sees}, got {len(observation.images)}: {names}")
    for camera, image in observation.images.items():
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ObservationError(
                f"image of camera {camera!r} must be RGB, uint8 [H, W, 3], got {image.dtype} {list(image.shape)}"
            )
    return list(observation.images.values())

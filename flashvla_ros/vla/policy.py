"""The policy that runs an OpenVLA checkpoint: the one place where its parts are put together."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flashvla_ros.core.errors import CheckpointError, ObservationError
from flashvla_ros.core.paths import share_path
from flashvla_ros.core.settings import ModelSettings, PruningSettings
from flashvla_ros.core.types import Draft, ImageArray, Inference, Observation
from flashvla_ros.vla.action_codec import ActionCodec
from flashvla_ros.vla.backend import Backend
from flashvla_ros.vla.checkpoint import Progress, load_config, load_model
from flashvla_ros.vla.decoding import Prefill, decode, prefill
from flashvla_ros.vla.draft import Verdict, judge, usable_tokens
from flashvla_ros.vla.model import OpenVLA
from flashvla_ros.vla.processor import ImageProcessor, PromptEncoder
from flashvla_ros.vla.pruning.select import METHODS
from flashvla_ros.vla.pruning.temporal import patch_cosines
from flashvla_ros.vla.tokenizer import load_tokenizer

_LOG = logging.getLogger(__name__)
_WARM_UP_INSTRUCTION = "pick up the object"


class OpenVLAPolicy:
    """Implements :class:`flashvla_ros.core.policy.Policy`. The same observation and settings give the same result.

    Attributes:
        on_stage: Called with a stage's name as it ends, for whoever counts what the stages do.
    """

    def __init__(
        self, model: OpenVLA, processor: ImageProcessor, prompts: PromptEncoder, codec: ActionCodec, backend: Backend
    ) -> None:
        self.model = model
        self.processor = processor
        self.prompts = prompts
        self.codec = codec
        self.backend = backend
        self.on_stage: Callable[[str], None] = lambda _stage: None
        self._prompt: tuple[str, Tensor] | None = None

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
    def visual_tokens(self) -> int:
        """N, the number of visual tokens before pruning."""
        return self.model.config.visual_tokens

    def reset(self) -> None:
        """Do nothing: what a result owes to an earlier one is handed in."""

    def warm_up(self, pruning: PruningSettings) -> None:
        """Run twice on noise, so that the first real observation does not pay for allocations and lazy set-up."""
        image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
        for _ in range(2):
            self.infer(Observation({"warm_up": image}, _WARM_UP_INSTRUCTION, stamp_s=0.0), pruning)

    @torch.inference_mode()
    def infer(
        self,
        observation: Observation,
        pruning: PruningSettings,
        previous: Inference | None = None,
        draft: Draft | None = None,
    ) -> Inference:
        """Run the model on one observation.

        Its timings are those of preprocess, vision, prefill, decode and, where tokens are scored, scoring.

        Raises:
            ObservationError: Not one camera, not an RGB image, or an instruction that is empty or too long.
            SettingsError: ``pruning.layer`` is not a layer of this decoder.
        """
        stages = _Stages(self.backend, self.on_stage)
        device = self.backend.device
        square = self.processor.to_square(_only_image(observation), device)
        pixels = self.processor.normalize(square).to(self.backend.dtype)
        picture, similarity = self._compare(square, pruning, previous)
        input_ids = self._input_ids(observation.instruction)
        stages.done("preprocess")
        visual = self.model.visual_tokens(pixels)
        stages.done("vision")
        key = round(observation.stamp_s * 1e9)
        drafted = usable_tokens(draft, self.action_size, self.model.config.llama().vocab_size)
        guess = torch.tensor([drafted], device=device) if drafted else None
        room, done = self.action_size - 1, stages.done
        start = prefill(self.model, visual, input_ids, room, pruning, key, similarity, guess, done=done)
        stages.done("prefill")
        verdict = self._judge(draft, drafted, start) if draft and drafted else Verdict((), 0, 0)
        known = torch.tensor([verdict.tokens], device=device) if drafted else None
        tokens = decode(self.model, start, self.action_size, known).cpu().numpy()
        stages.done("decode")
        normalized = self.codec.decode(tokens)[None]
        return Inference(
            action=self.codec.unnormalize(normalized),
            normalized=normalized,
            tokens=tokens,
            kept=None if start.kept is None else start.kept.cpu().numpy(),
            visual_tokens=self.visual_tokens,
            timings_s=stages.seconds,
            picture=picture,
            draft_tokens=len(drafted),
            draft_accepted=verdict.accepted,
            draft_near=verdict.near,
        )

    def _judge(self, draft: Draft, drafted: tuple[int, ...], start: Prefill) -> Verdict:
        """Compare the draft with the model's own choices; the one place of a step where the host waits for the GPU."""
        return judge(drafted, start.logits[0].argmax(dim=-1).tolist(), draft, self.codec)

    def _compare(
        self, square: Tensor, pruning: PruningSettings, previous: Inference | None
    ) -> tuple[ImageArray | None, Tensor | None]:
        """Return the picture to compare the next frame with, and the similarity [N] to that of `previous`."""
        if pruning.method == "none" or not METHODS[pruning.method].needs_frame:
            return None, None
        picture = square.cpu().numpy()
        if previous is None or previous.picture is None:
            return picture, None
        side = math.isqrt(self.visual_tokens)
        return picture, torch.from_numpy(patch_cosines(picture, previous.picture, side))

    def _input_ids(self, instruction: str) -> Tensor:
        """Encode the instruction, [1, P]; the last one is kept, since it seldom changes."""
        if self._prompt is None or self._prompt[0] != instruction:
            ids = self.prompts(instruction)
            self._prompt = instruction, torch.tensor([ids], device=self.backend.device)
        return self._prompt[1]


class _Stages:
    """Seconds that each stage of one inference took, with the device synchronised at both ends; parts of one add up."""

    def __init__(self, backend: Backend, on_stage: Callable[[str], None]) -> None:
        self.seconds: dict[str, float] = {}
        self._backend = backend
        self._on_stage = on_stage
        self._backend.synchronize()
        self._last = time.perf_counter()

    def done(self, name: str) -> None:
        self._backend.synchronize()
        self._on_stage(name)
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


def checkpoint_folder(settings: ModelSettings) -> Path:
    """Return the folder of ``model.checkpoint``, that of the demo policy where it is empty."""
    return Path(settings.checkpoint).expanduser() if settings.checkpoint else share_path("models", "demo")


def _log_progress(file: str, number: int, count: int) -> None:
    _LOG.info("reading %s, file %d of %d", file, number, count)


def _only_image(observation: Observation) -> ImageArray:
    if len(observation.images) != 1:
        cameras = ", ".join(observation.images) or "none"
        raise ObservationError(f"this checkpoint sees one camera, got {len(observation.images)}: {cameras}")
    ((camera, image),) = observation.images.items()
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ObservationError(
            f"image of camera {camera!r} must be RGB, uint8 [H, W, 3], got {image.dtype} {list(image.shape)}"
        )
    return image

"""The policy that runs an OpenVLA-OFT checkpoint: a chunk in one pass, regressed or in bins."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from flashvla_ros.core.errors import CheckpointError
from flashvla_ros.core.paths import checkpoint_folder
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import ModelSettings
from flashvla_ros.core.types import FloatArray, Inference
from flashvla_ros.vla.arch.base import Architecture, Outline, measured, read_config, state_bounds
from flashvla_ros.vla.arch.oft.film import install
from flashvla_ros.vla.arch.oft.head import ProprioProjector, empty_head
from flashvla_ros.vla.checkpoint import Progress
from flashvla_ros.vla.parts import fill, find_part, read_part, to_chunk, under
from flashvla_ros.vla.query import Layout, Query
from flashvla_ros.vla.statistics import Bounds, choose_key
from flashvla_ros.vla.step import Loaded, Stages, VLAPolicy, check_tokens, load_parts, to_host

HEAD, PROJECTOR, FILM = "action_head--", "proprio_projector--", "vision_backbone--"
_END = 2  # </s>, which closes the sequence
_EPSILON = 1e-8  # OpenVLA-OFT adds it to every range
_STATE = "fc1.weight"  # of the projector: a column for each value of the state
_PREFIX = "model."  # of the head's tensors


class Preset(NamedTuple):
    """What the official code takes from the words of its command line."""

    chunk_size: int = 0
    action_bounds: str = ""
    images: int = 0


PRESETS: Mapping[str, Preset] = {
    "libero": Preset(8, "quantiles", 2),
    "aloha": Preset(25, "min_max", 3),
    "bridge": Preset(5, "quantiles", 1),
}


class OFTPolicy(VLAPolicy):
    """Runs one bidirectional pass, and makes a chunk of the rows that stand for its actions.

    Args:
        loaded: Network, images, prompts and backend.
        outline: Of the checkpoint.
        head: Regresses the chunk; None: its tokens are the most likely ones.
        projector: Of the robot's state; None: the network is not told of it.
        proprio: Names of the state's values, and the bounds that normalise them.
        language: [1, d] where the towers read the mean embedding of all tokens (FiLM); None: they read none.
    """

    def __init__(
        self,
        loaded: Loaded,
        outline: Outline,
        head: nn.Module | None,
        projector: nn.Module | None = None,
        proprio: tuple[tuple[str, ...], Bounds] | None = None,
        *,
        language: Tensor | None = None,
    ) -> None:
        super().__init__(*loaded, bounds=outline.bounds, tokens=0)
        self.chunk_size = outline.chunk_size
        self.layout = outline.layout
        self._head, self._projector, self._proprio = head, projector, proprio
        self._language = language
        self.state_names = proprio[0] if proprio else ()

    @classmethod
    def load(cls, settings: ModelSettings, progress: Progress | None = None) -> OFTPolicy:
        """Load the checkpoint that `settings` name; raises CheckpointError or SettingsError."""
        folder = checkpoint_folder(settings.checkpoint)
        outline = read_outline(folder, settings)
        loaded = load_parts(folder, outline.config, settings, outline.rows, progress)
        device, dtype = loaded.backend.device, loaded.backend.dtype
        head = projector = proprio = None
        width = outline.config.llama().hidden_size
        if path := find_part(folder, HEAD):
            tensors = under(read_part(path), _PREFIX)
            empty = empty_head(tensors, width)
            assert empty is not None, "the outline was read"  # noqa: S101  # of the code, not of input
            head = fill(empty, tensors, path, device, dtype)
        if path := find_part(folder, PROJECTOR):
            names, bounds = state_bounds(path, _STATE, outline, settings)
            with torch.device("meta"):
                module = ProprioProjector(len(names), width)
            projector, proprio = fill(module, read_part(path), path, device, dtype), (names, bounds)
        film = find_part(folder, FILM)
        return cls(loaded, outline, head, projector, proprio, language=install(loaded.model, film) if film else None)

    def _before_vision(self, prompt: list[int]) -> None:
        if self._language is not None:
            ids = torch.tensor([*prompt, *self.layout.closing], device=self._language.device)
            self._language[0].copy_(self.model.language_model.model.embed_tokens(ids).mean(dim=0))

    def _answer(self, visual: Tensor, query: Query, request: Request, stages: Stages) -> Inference:
        extra = None
        if self._projector is not None and self._proprio is not None:
            state = measured(request.observation, *self._proprio).to(visual.device, visual.dtype)
            extra = self._projector(state[None])
        start, _, _ = self._prefilled(visual, dataclasses.replace(query, extra=extra), None, stages)
        if self._head is None:
            tokens, confidence, kept = to_host(start.choices, start.certainty, start.kept)
            check_tokens(tokens)
            normalized: FloatArray = self.codec.decode(tokens).reshape(self.chunk_size, -1)
        else:
            tokens, confidence = np.empty(0, dtype=np.int64), math.nan
            normalized = to_chunk(self._head(start.hidden.reshape(self.chunk_size, -1)), self.chunk_size)
            kept = None if start.kept is None else start.kept.cpu().numpy()
        stages.done("decode")
        action = self.bounds.unnormalize(normalized)
        return Inference(action, normalized, tokens, kept, self.visual_tokens, confidence=confidence)


def read_outline(folder: Path, settings: ModelSettings) -> Outline:
    """Read what the files and the parameters say.

    Raises:
        CheckpointError: The files do not fit each other, or a parameter that no file has is not set.
    """
    preset = PRESETS.get(settings.preset, Preset())
    config = read_config(folder, settings, preset.images)
    chunk = settings.chunk_size or config.oft.get("chunk_size", preset.chunk_size)
    kind = config.oft.get("action_bounds", preset.action_bounds)
    kind = kind if settings.action_bounds == "auto" else settings.action_bounds
    unset = [name for name, value in (("model.chunk_size", chunk), ("model.action_bounds", kind)) if not value]
    if unset:
        raise CheckpointError(
            f"{folder} is of OpenVLA-OFT, and none of its files says what {' and '.join(unset)} is: "
            f"set it, or model.preset to one of {', '.join(PRESETS)}"
        )
    if any(folder.glob("noisy_action_projector--*")):
        raise CheckpointError(f"{folder} has a diffusion head, which needs a pass for each step and is not run here")
    key = choose_key(config.norm_stats, settings.unnorm_key)
    bounds = Bounds.from_statistics(config.norm_stats, key, kind=kind, epsilon=_EPSILON)
    parts, beside = {}, 0
    head, projector = find_part(folder, HEAD), find_part(folder, PROJECTOR)
    if head:
        module = empty_head(under(read_part(head), _PREFIX), width := config.llama().hidden_size)
        if module is None:
            raise CheckpointError(
                f"{head} is no L1 head that reads hidden states of {width}: give the head of these weights"
            )
        if module.fc2.out_features != bounds.size:
            raise CheckpointError(
                f"{head} makes actions of {module.fc2.out_features} dimensions, and the statistics of {key!r} have "
                f"{bounds.size}: set model.unnorm_key, or give the head of these weights"
            )
        beside = sum(value.numel() for value in module.parameters())
        parts["head"] = f"L1, {beside / 1e6:.1f} million parameters"
    else:
        parts["head"] = "none: actions are tokens"
    layout = Layout(
        extra=int(projector is not None), zeros=chunk * bounds.size, closing=(_END,), full=True, chooses=head is None
    )
    beside += sum(value.numel() for value in read_part(projector).values()) if projector else 0
    outline = Outline(config, bounds, chunk, decoded=0, layout=layout, parts=parts, beside=beside)
    if any(folder.glob(f"{FILM}*")):
        parts["FiLM"] = "the instruction modulates the towers"
    if projector:
        parts["proprioception"] = ", ".join(state_bounds(projector, _STATE, outline, settings)[0])
    return outline


OFT = Architecture(
    "OpenVLA-OFT", recognises=lambda folder: any(folder.glob(f"{HEAD}*")), outline=read_outline, load=OFTPolicy.load
)

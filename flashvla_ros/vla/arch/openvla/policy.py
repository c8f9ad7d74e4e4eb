"""The policy that runs an OpenVLA checkpoint."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from flashvla_ros.core.errors import CheckpointError
from flashvla_ros.core.paths import checkpoint_folder
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import ModelSettings
from flashvla_ros.core.types import Inference
from flashvla_ros.vla.arch.base import Architecture, Outline, read_config
from flashvla_ros.vla.checkpoint import Progress
from flashvla_ros.vla.query import Query
from flashvla_ros.vla.statistics import Bounds
from flashvla_ros.vla.step import Stages, VLAPolicy, check_tokens, load_parts, to_host


class OpenVLAPolicy(VLAPolicy):
    """Decodes the tokens of an action greedily, or confirms those of a draft in one pass."""

    @classmethod
    def load(cls, settings: ModelSettings, progress: Progress | None = None) -> OpenVLAPolicy:
        """Load the checkpoint that `settings` name; raises CheckpointError or SettingsError."""
        folder = checkpoint_folder(settings.checkpoint)
        outline = read_outline(folder, settings)
        loaded = load_parts(folder, outline.config, settings, outline.rows, progress)
        return cls(*loaded, bounds=outline.bounds, tokens=outline.decoded)

    def _answer(self, visual: Tensor, query: Query, request: Request, stages: Stages) -> Inference:
        start, verdict, drafted = self._prefilled(visual, query, request.draft, stages)
        decoded = self.engine.decode(start, verdict.tokens)
        tokens, confidence, kept = to_host(decoded.tokens, decoded.certainty, start.kept)
        stages.done("decode")
        check_tokens(tokens)
        normalized = self.codec.decode(tokens)[None]
        return Inference(
            self.bounds.unnormalize(normalized),
            normalized,
            tokens,
            kept,
            self.visual_tokens,
            draft_tokens=drafted,
            draft_accepted=verdict.accepted,
            draft_near=verdict.near,
            confidence=confidence,
        )


def read_outline(folder: Path, settings: ModelSettings) -> Outline:
    """Read what the files say; refuse, with :class:`CheckpointError`, those of OpenVLA-OFT."""
    config = read_config(folder, settings)
    if parts := sorted(file.name for file in folder.glob("*--*_checkpoint.*")):
        raise CheckpointError(
            f"{folder} is of OpenVLA-OFT: its actions come out of {', '.join(parts)}: "
            f"set model.architecture to openvla_oft"
        )
    bounds = Bounds.from_statistics(config.norm_stats, settings.unnorm_key)
    return Outline(config, bounds, decoded=bounds.size)


OPENVLA = Architecture("OpenVLA", lambda _folder: True, read_outline, OpenVLAPolicy.load)

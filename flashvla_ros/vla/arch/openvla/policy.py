"""The policy that runs an OpenVLA checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import Tensor

from flashvla_ros.core.errors import CheckpointError
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import ModelSettings
from flashvla_ros.core.types import Draft
from flashvla_ros.vla.action_codec import ActionCodec
from flashvla_ros.vla.arch.base import Architecture, Outline, read_config
from flashvla_ros.vla.backend import Backend
from flashvla_ros.vla.checkpoint import Progress, checkpoint_folder
from flashvla_ros.vla.draft import Verdict, judge, usable_tokens
from flashvla_ros.vla.engine.base import Start
from flashvla_ros.vla.model import PrismaticVLM
from flashvla_ros.vla.processor import ImageProcessor, PromptEncoder
from flashvla_ros.vla.query import Query
from flashvla_ros.vla.step import Answer, Stages, VLAPolicy, check_tokens, load_parts, to_host


class OpenVLAPolicy(VLAPolicy):
    """Decodes the tokens of an action greedily, or confirms those of a draft in one pass.

    Args:
        model: The network, in evaluation mode.
        processor: Of its images.
        prompts: Of its instructions.
        codec: Makes an action of tokens.
        backend: What it runs on.
    """

    def __init__(
        self,
        model: PrismaticVLM,
        processor: ImageProcessor,
        prompts: PromptEncoder,
        codec: ActionCodec,
        backend: Backend,
    ) -> None:
        super().__init__(model, processor, prompts, backend, bounds=codec.bounds, tokens=codec.size)
        self.codec = codec

    @classmethod
    def load(cls, settings: ModelSettings, progress: Progress | None = None) -> OpenVLAPolicy:
        """Load the checkpoint that `settings` name, or the demo policy, onto its device.

        Progress goes to the log unless `progress` takes it.

        Raises:
            CheckpointError: The folder is not a complete OpenVLA checkpoint, or does not fit into memory.
            SettingsError: This machine lacks the device or attention implementation.
        """
        folder = checkpoint_folder(settings)
        outline = read_outline(folder, settings)
        codec = ActionCodec.from_config(outline.config, settings.unnorm_key)
        model, processor, prompts, backend = load_parts(folder, outline.config, settings, outline.rows, progress)
        return cls(model, processor, prompts, codec, backend)

    def _answer(self, visual: Tensor, query: Query, request: Request, stages: Stages) -> Answer:
        draft = request.draft
        drafted = usable_tokens(draft, self.action_size, self.model.config.text_config["vocab_size"])
        start = self.engine.prefill(visual, dataclasses.replace(query, drafted=drafted), done=stages.done)
        stages.done("prefill")
        verdict = self._judge(draft, drafted, start) if draft and drafted else Verdict((), 0, 0)
        decoded = self.engine.decode(start, verdict.tokens)
        tokens, confidence, kept = to_host(decoded.tokens, decoded.certainty, start.kept)
        stages.done("decode")
        check_tokens(tokens)
        normalized = self.codec.decode(tokens)[None]
        return Answer(
            action=self.bounds.unnormalize(normalized),
            normalized=normalized,
            tokens=tokens,
            kept=kept,
            draft_tokens=len(drafted),
            draft_accepted=verdict.accepted,
            draft_near=verdict.near,
            confidence=confidence,
        )

    def _judge(self, draft: Draft, drafted: tuple[int, ...], start: Start) -> Verdict:
        """Compare the draft with the model's own choices; apart from the end, the one place where the host waits."""
        return judge(drafted, start.choices.tolist(), draft, self.codec)


def read_outline(folder: Path, settings: ModelSettings) -> Outline:
    """Read what the files say; refuse, with :class:`CheckpointError`, those of OpenVLA-OFT."""
    config = read_config(folder, settings)
    if parts := sorted(file.name for file in folder.glob("*--*_checkpoint.*")):
        raise CheckpointError(
            f"{folder} is of OpenVLA-OFT: its actions come out of {', '.join(parts)}: "
            f"set model.architecture to openvla_oft"
        )
    bounds = ActionCodec.from_config(config, settings.unnorm_key).bounds
    return Outline(config, bounds, decoded=bounds.size)


OPENVLA = Architecture("OpenVLA", lambda _folder: True, read_outline, OpenVLAPolicy.load)

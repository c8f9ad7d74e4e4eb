"""The policy that runs an OpenVLA checkpoint."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from flashvla_ros.core.errors import ActionError
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import ModelSettings
from flashvla_ros.core.types import Draft, IntArray
from flashvla_ros.vla.action_codec import ActionCodec
from flashvla_ros.vla.arch.base import Architecture
from flashvla_ros.vla.backend import Backend
from flashvla_ros.vla.checkpoint import Progress, checkpoint_folder, load_config
from flashvla_ros.vla.draft import Verdict, judge, usable_tokens
from flashvla_ros.vla.engine.base import Start
from flashvla_ros.vla.model import NOTHING, PrismaticVLM
from flashvla_ros.vla.processor import ImageProcessor, PromptEncoder
from flashvla_ros.vla.query import Query
from flashvla_ros.vla.step import Answer, Stages, VLAPolicy, load_parts


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
        super().__init__(model, processor, prompts, backend, tokens=codec.size)
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
        config = load_config(folder)
        codec = ActionCodec.from_config(config, settings.unnorm_key)
        model, processor, prompts, backend = load_parts(folder, config, settings, codec.size, progress)
        return cls(model, processor, prompts, codec, backend)

    @property
    def action_size(self) -> int:
        """D, the number of action dimensions."""
        return self.codec.size

    def _answer(self, visual: Tensor, query: Query, request: Request, stages: Stages) -> Answer:
        draft = request.draft
        drafted = usable_tokens(draft, self.action_size, self.model.config.llama().vocab_size)
        start = self.engine.prefill(visual, dataclasses.replace(query, drafted=drafted), done=stages.done)
        stages.done("prefill")
        verdict = self._judge(draft, drafted, start) if draft and drafted else Verdict((), 0, 0)
        tokens, kept = _to_host(self.engine.decode(start, verdict.tokens), start.kept)
        stages.done("decode")
        _check_tokens(tokens)
        normalized = self.codec.decode(tokens)[None]
        return Answer(
            action=self.codec.unnormalize(normalized),
            normalized=normalized,
            tokens=tokens,
            kept=kept,
            draft_tokens=len(drafted),
            draft_accepted=verdict.accepted,
            draft_near=verdict.near,
        )

    def _judge(self, draft: Draft, drafted: tuple[int, ...], start: Start) -> Verdict:
        """Compare the draft with the model's own choices; apart from the end, the one place where the host waits."""
        return judge(drafted, start.choices.tolist(), draft, self.codec)


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


OPENVLA = Architecture("OpenVLA", recognises=lambda _folder: True, load=OpenVLAPolicy.load)

"""What all rivals share: a policy that plays by a published rule, forgets at a reset, and counts its work."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence

from flashvla_ros.core.flops import ModelSize
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import PruningSettings
from flashvla_ros.core.types import Inference
from flashvla_ros.vla.config import model_size
from flashvla_ros.vla.step import VLAPolicy

DENSE = PruningSettings(method="none")


@dataclasses.dataclass(frozen=True)
class Work:
    """FLOPs of one step on visual tokens, and end to end, as multiples of a dense inference's; see ``core.flops``."""

    visual: float = 0.0
    total: float = 0.0


class Rule(abc.ABC):
    """Implements :class:`flashvla_ros.core.policy.Policy` over a dense policy; unlike others it keeps a state.

    Args:
        policy: The model, warmed up.

    Attributes:
        work: Of the last step; none where the model was not run.
    """

    def __init__(self, policy: VLAPolicy) -> None:
        self.policy = policy
        self.size: ModelSize = model_size(policy.model.config)
        self.work = Work()

    @property
    def action_size(self) -> int:
        """D, the number of action dimensions."""
        return self.policy.action_size

    def infer(self, request: Request) -> Inference:
        """Answer an observation; without a previous result an episode begins."""
        if request.previous is None:
            self.forget()
        inference, self.work = self.step(request)
        return inference

    @abc.abstractmethod
    def step(self, request: Request) -> tuple[Inference, Work]:
        """Answer an observation, and say what it cost."""

    def forget(self) -> None:  # noqa: B027 - some have no state
        """Empty the state."""

    def dense(self, request: Request) -> tuple[Inference, Work]:
        """Run the whole model."""
        return self.policy.infer(dataclasses.replace(request, pruning=DENSE)), Work(1.0, 1.0)

    def pruned(self, request: Request, kept: int, layer: int) -> Work:
        """Return the work where the layers from `layer` on see `kept` visual tokens."""
        size, (text, actions) = self.size, self.tokens(request)
        whole = size.inference_flops(size.visual_tokens, layer, text, actions)
        visual = size.decoder.visual_share(size.visual_tokens, kept, layer)
        return Work(visual, size.inference_flops(kept, layer, text, actions) / whole)

    def computed(self, request: Request, rows: Sequence[int]) -> Work:
        """Return the work where layer l computes ``rows[l]`` visual tokens, which attend to all that come before."""
        count, decoder, (text, actions) = self.size.visual_tokens, self.size.decoder, self.tokens(request)
        width, inner = decoder.width, decoder.inner
        token = 4 * width**2 + 2 * width * inner + 2 * count * width
        row = 2 * (2 * width * (width + self.size.kv_width) + 3 * width * inner + 2 * (count + text) * width)
        left_out = sum(count - rows_of for rows_of in rows)
        dense = decoder.layers * decoder.layer_flops(count)
        return Work(
            1.0 - left_out * token / dense, 1.0 - left_out * row / self.size.inference_flops(count, 0, text, actions)
        )

    def tokens(self, request: Request) -> tuple[int, int]:
        """Return the tokens of the sequence that are no visual ones, and those that are decoded."""
        policy = self.policy
        text = len(policy.prompts(request.observation.instruction)) + policy.layout.rows
        return text, max(policy.decoded, 1)

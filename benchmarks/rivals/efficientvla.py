"""EfficientVLA's language module pruning (arXiv 2506.10100): the decoder layers that change least are left out.

The rule: the importance of a layer is 1 less the cosine between a token's hidden state before and after it, the mean
over tokens and over a set of observations. The least important layers go, wherever they are. The published setting
leaves 22 of CogACT's 32 layers, the same share as here.

Not known: the observations and the tokens of the mean; here the package's own frames and the whole prompt. Its choice
of tokens and its cache of the diffusion head are other parts of the method; OpenVLA has no such head.
"""

from __future__ import annotations

import copy
import dataclasses
import math

from torch import Tensor, nn
from torch.nn import functional

from benchmarks.rivals.rule import DENSE, Rule, Work
from flashvla_ros.bench.models import INSTRUCTION
from flashvla_ros.bench.run import seen_by
from flashvla_ros.bench.trace import load_observations
from flashvla_ros.core.policy import Request
from flashvla_ros.core.types import Inference
from flashvla_ros.vla.step import VLAPolicy

KEPT = 22 / 32


class FewerLayers(Rule):
    """See the module.

    Args:
        policy: The model, warmed up; it stays whole.
        kept: Share of the decoder's layers that stay.

    Attributes:
        layers: Those that stay.
    """

    def __init__(self, policy: VLAPolicy, *, kept: float = KEPT) -> None:
        super().__init__(policy)
        importance = layer_importance(policy)
        count = math.floor(kept * len(importance) + 0.5)
        self.layers = sorted(sorted(range(len(importance)), key=importance.__getitem__, reverse=True)[:count])
        self.policy = with_layers(policy, self.layers)
        self.policy.warm_up(DENSE, INSTRUCTION)

    def step(self, request: Request) -> tuple[Inference, Work]:
        """See :class:`Rule`."""
        whole, (text, actions) = self.size, self.tokens(request)
        fewer = dataclasses.replace(whole, decoder=dataclasses.replace(whole.decoder, layers=len(self.layers)))
        least, most = (size.inference_flops(size.visual_tokens, 0, text, actions) for size in (fewer, whole))
        return self.dense(request)[0], Work(len(self.layers) / whole.decoder.layers, least / most)


def layer_importance(policy: VLAPolicy) -> list[float]:
    """Return 1 less the mean cosine between input and output of each decoder layer, over the package's frames."""
    found: list[list[float]] = [[] for _ in policy.model.layers]
    hooks = [
        layer.register_forward_hook(lambda _module, given, made, row=row: _note(row, given[0], made[0]))
        for layer, row in zip(policy.model.layers, found, strict=True)
    ]
    reference = policy.reference()
    for seen in load_observations(INSTRUCTION):
        reference.infer(Request(seen_by(policy, seen), DENSE))
    for hook in hooks:
        hook.remove()
    return [1.0 - sum(row) / len(row) for row in found]


def _note(row: list[float], before: Tensor, after: Tensor) -> None:
    if before.shape[1] > 1:  # the prompt, not a token that is decoded
        row.append(float(functional.cosine_similarity(before, after, dim=-1).mean()))


def with_layers(policy: VLAPolicy, layers: list[int]) -> VLAPolicy:
    """Return a policy whose decoder has only these layers."""
    model = copy.deepcopy(policy.model)
    decoder = model.language_model.model
    decoder.layers = nn.ModuleList(decoder.layers[index] for index in layers)
    for index, layer in enumerate(decoder.layers):
        layer.self_attn.index = index  # its place in the cache
    fewer = copy.copy(policy)
    fewer.model = model
    return fewer.on(policy.backend)

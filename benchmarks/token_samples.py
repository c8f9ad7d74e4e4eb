"""What pruning methods score in the demo policy, on the frames that ship: real tokens for measurements."""

from __future__ import annotations

import torch
from flashvla_ros.bench.frames import load_observations
from torch import Tensor

from flashvla_ros.bench import models
from flashvla_ros.core.settings import ModelSettings
from flashvla_ros.vla.policy import OpenVLAPolicy
from flashvla_ros.vla.pruning.probe import run_and_view
from flashvla_ros.vla.pruning.scores import centred

_LAYER = 2


@torch.inference_mode()
def sampled_tokens() -> list[Tensor]:
    """Return rows [N, d] in float32: of each frame what `ics` scores, attention output, and `ics_values`, values."""
    policy = OpenVLAPolicy.load(ModelSettings(device="cpu"))
    model, samples = policy.model, []
    for seen in load_observations(models.INSTRUCTION):
        (image,) = seen.images.values()
        visual = model.visual_tokens(policy.processor(image))
        hidden = model.embed(visual, torch.tensor([policy.prompts(seen.instruction)]))
        rotary = model.rotary(hidden, torch.arange(hidden.shape[1])[None])
        _, view = run_and_view(model, hidden, visual.shape[1], _LAYER, rotary, model.causal_mask(hidden))
        samples += [view.attention.float(), centred(view.values)]
    return samples

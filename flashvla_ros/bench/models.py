"""What ``flashvla-ros bench`` can measure: a checkpoint folder, the demo policy, or random weights of a given size."""

from __future__ import annotations

import dataclasses
import os

import torch

from flashvla_ros.core.errors import CheckpointError
from flashvla_ros.core.paths import user_path
from flashvla_ros.core.settings import ModelSettings
from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy
from flashvla_ros.vla.arch.table import load
from flashvla_ros.vla.backend import Backend
from flashvla_ros.vla.checkpoint import build_empty
from flashvla_ros.vla.config import OpenVLAConfig
from flashvla_ros.vla.model import PrismaticVLM
from flashvla_ros.vla.processor import ImageProcessor, PromptEncoder, format_prompt
from flashvla_ros.vla.random_checkpoint import LLAMA_VOCABULARY, config_of_size, deviation_of
from flashvla_ros.vla.statistics import Bounds
from flashvla_ros.vla.step import VLAPolicy
from flashvla_ros.vla.tokenizer import build_tokenizer

SIZES = ("tiny", "mid", "7b")
DEMO = "demo"
INSTRUCTION = "open the drawer"
_STATISTICS = "random"


def load_subject(name: str, settings: ModelSettings) -> VLAPolicy:
    """Return the policy that is measured.

    Args:
        name: ``demo``, a size of random weights (in memory, nothing is written), or a checkpoint folder.
        settings: Device, type, attention and threads; its checkpoint is replaced by what `name` says.

    Raises:
        CheckpointError: There is no such folder, or the weights do not fit into memory.
    """
    if name in SIZES:
        return random_policy(config_of_size(name), settings)
    if name != DEMO and not user_path(name).is_dir():
        raise CheckpointError(f"--model is a checkpoint folder or one of {DEMO}, {', '.join(SIZES)}, got {name!r}")
    folder = "" if name == DEMO else name
    return load(ModelSettings(**{**vars(settings), "checkpoint": folder}))


def random_policy(config: OpenVLAConfig, settings: ModelSettings, *, action_size: int = 7) -> OpenVLAPolicy:
    """Build a policy of random weights straight on its device, with OpenVLA's prompt."""
    statistics = {"q01": [-1.0] * action_size, "q99": [1.0] * action_size, "mask": [True] * action_size}
    config = dataclasses.replace(config, norm_stats={_STATISTICS: {"action": statistics}})
    backend = Backend.resolve(settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    model = build_empty(config, backend.attention).to(backend.dtype)
    _check_memory(model, backend)
    try:
        model = model.to_empty(device=backend.device)
        _fill(model)
    except torch.OutOfMemoryError as error:
        raise CheckpointError(f"the weights do not fit into the memory of {backend.device}") from error
    tokenizer = build_tokenizer([format_prompt(INSTRUCTION)], LLAMA_VOCABULARY)
    prompts = PromptEncoder(tokenizer, config.llm_max_length - config.visual_tokens - action_size)
    processor, bounds = ImageProcessor.from_config(config), Bounds.from_statistics(config.norm_stats)
    return OpenVLAPolicy(model.eval(), processor, prompts, backend, bounds=bounds, tokens=action_size)


@torch.no_grad()
def _fill(model: PrismaticVLM) -> None:
    """Draw weights as random checkpoints on disk have them."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(0)
    for name, parameter in model.requires_grad_(False).named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, deviation_of(name, parameter.shape), generator=generator)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    head, config = model.language_model.lm_head.weight, model.config
    head[: config.action_vocab_size - config.n_action_bins] = 0.0  # only action tokens can win
    head[config.action_vocab_size :] = 0.0


def _check_memory(model: PrismaticVLM, backend: Backend) -> None:
    """Refuse weights that this machine cannot hold: on the CPU the system would end the process instead."""
    if backend.device.type != "cpu":
        return
    needed = sum(parameter.nbytes for parameter in model.parameters())
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > 0.9 * total:
        raise CheckpointError(
            f"the weights need {needed / 1e9:.1f} GB, this machine has {total / 1e9:.1f} GB ({free / 1e9:.1f} free): "
            f"use --dtype bfloat16, a smaller --model, or a GPU"
        )


def describe(policy: VLAPolicy) -> dict[str, object]:
    """Return the sizes that decide what a step costs."""
    config, llama = policy.model.config, policy.model.config.llama()
    count = {
        "vision": sum(p.numel() for p in policy.model.towers.parameters()),
        "projector": sum(p.numel() for p in policy.model.projector.parameters()),
        "decoder": sum(p.numel() for p in policy.model.layers.parameters()),
        "vocabulary": 2 * llama.vocab_size * llama.hidden_size,
    }
    towers = [f"{tower.model_type} {tower.num_hidden_layers - 1}x{tower.hidden_size}" for tower in config.towers]
    return {
        "towers": towers,
        "decoder": f"{llama.num_hidden_layers}x{llama.hidden_size}x{llama.intermediate_size}",
        "visual_tokens": config.visual_tokens,
        "action_size": policy.action_size,
        "parameters": count,
    }

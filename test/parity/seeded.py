"""Checkpoints whose weights come from seeds, for OpenVLA-OFT and UniVLA: only what the official code made is kept.

NumPy promises that ``RandomState`` draws the same numbers for ever, so neither weights nor images need a file.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from flashvla_ros.core.types import FloatArray, ImageArray
from flashvla_ros.vla.config import OpenVLAConfig
from flashvla_ros.vla.keys import entries
from flashvla_ros.vla.model import PrismaticVLM
from flashvla_ros.vla.random_checkpoint import write_tokenizer
from flashvla_ros.vla.shapes import DINOV2, SIGLIP, TowerConfig
from flashvla_ros.vla.tokenizer import build_tokenizer
from training.saving import save_checkpoint

WIDTH, VOCABULARY = 64, 32064
INSTRUCTION = "put both moka pots on the stove"
LIBERO_STATE = ("x", "y", "z", "ax", "ay", "az", "finger_1", "finger_2")


def draw(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Draw a tensor by its name, such that signals keep their size and rows of a sequence differ from each other."""
    random = np.random.RandomState(zlib.crc32(f"{seed} {name}".encode()))
    values = random.standard_normal(shape).astype(np.float32)
    if len(shape) == 1:
        norm = name.endswith((".g", "scale_factor")) or (
            name.endswith("weight") and ("norm" in name or "ffn.0" in name)
        )
        return torch.from_numpy(1.0 + 0.1 * values if norm else 0.1 * values)
    table = name.endswith(("embed_tokens.weight", "_token", "pos_embed", "latents"))
    fan_in = 1 if table else int(np.prod(shape[1:]))
    sharper = 4.0 if "q_proj" in name or "k_proj" in name else 3.0 if "o_proj" in name else 1.0
    return torch.from_numpy(values) * (sharper * fan_in**-0.5)


def image(number: int) -> ImageArray:
    """Draw a picture of the size that the towers see."""
    return np.random.RandomState(number).randint(0, 256, (224, 224, 3)).astype(np.uint8)


def statistics(actions: int, state: int) -> dict[str, Any]:
    """Statistics in which every kind of bounds gives another action."""
    random = np.random.RandomState(3)

    def entry(size: int) -> dict[str, list[float]]:
        low, span = random.uniform(-1.0, 0.0, size), random.uniform(0.2, 1.0, size)
        return {
            "min": low.tolist(),
            "max": (low + span).tolist(),
            "q01": (low + 0.1 * span).tolist(),
            "q99": (low + 0.8 * span).tolist(),
            "mean": (low + 0.4 * span).tolist(),
            "std": (0.3 * span).tolist(),
        }

    masked: dict[str, Any] = {**entry(actions), "mask": [True] * (actions - 1) + [False]}
    return {"seeded": {"action": masked, "proprio": entry(state)}}


def config(images: int, state: int = 8) -> OpenVLAConfig:
    """Return a configuration of 256 visual tokens for each image, as the official code needs them."""
    towers = (TowerConfig(DINOV2, 224, 14, 32, 4, 2, 128, 4), TowerConfig(SIGLIP, 224, 14, 48, 4, 2, 192))
    text = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 4}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 4, "pad_token_id": 32000}
    return OpenVLAConfig(
        "seeded",
        towers,
        text,
        statistics(7, state),
        image_resize_strategy="resize-naive",
        num_images_in_input=images,
    )


def network(images: int, seed: int, state: int = 8) -> PrismaticVLM:
    """Return the network of a seed."""
    model = PrismaticVLM(config(images, state)).eval().requires_grad_(False)
    parameters = dict(model.named_parameters())
    for official, entry in entries(model).items():
        parameters[entry.ours].copy_(draw(official, entry.shape, seed))
    return model


def write(
    folder: Path, model: PrismaticVLM, parts: dict[str, dict[str, tuple[int, ...]]], seed: int, acts: int = 0
) -> Path:
    """Write a folder: the network, a tokenizer with `acts` latent action tokens, and parts by name to their shapes."""
    save_checkpoint(folder, model, build_tokenizer([INSTRUCTION], 1024))
    write_tokenizer(folder, model.config, acts)
    for part, shapes in parts.items():
        tensors = {name: draw(f"{part} {name}", shape, seed) for name, shape in shapes.items()}
        save_file(tensors, folder / f"{part}.safetensors")
    return folder


def head_shapes(actions: int = 7, width: int = 40) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an L1 head as training saves it."""
    size = WIDTH * actions
    shapes: dict[str, tuple[int, ...]] = {
        "layer_norm1.weight": (size,),
        "layer_norm1.bias": (size,),
        "fc1.weight": (width, size),
        "fc1.bias": (width,),
    }
    for block in range(2):
        for layer, shape in ((0, (width,)), (1, (width, width))):
            name = f"mlp_resnet_blocks.{block}.ffn.{layer}"
            shapes |= {f"{name}.weight": shape, f"{name}.bias": (width,)}
    shapes |= {"layer_norm2.weight": (width,), "layer_norm2.bias": (width,)}
    shapes |= {"fc2.weight": (actions, width), "fc2.bias": (actions,)}
    return {f"model.{name}": shape for name, shape in shapes.items()}


def projector_shapes(state: int = 8) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a proprioception projector."""
    return {"fc1.weight": (WIDTH, state), "fc1.bias": (WIDTH,), "fc2.weight": (WIDTH, WIDTH), "fc2.bias": (WIDTH,)}


def state_of_robot() -> FloatArray:
    """[8] the robot's state, within its statistics but for one value that must be cut."""
    values = statistics(7, 8)["seeded"]["proprio"]
    state = np.array(values["q01"]) + np.linspace(0.1, 0.9, 8) * (np.array(values["q99"]) - np.array(values["q01"]))
    state[7] = values["max"][7] + 1.0
    return state


def pool_shapes(name: str, size: int = 128, inner: int = 32) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one of UniVLA's pools: two heads of 64."""
    shapes = {
        "latents": (1, size),
        "projection.weight": (size, WIDTH),
        "projection.bias": (size,),
        "attn.q.weight": (size, size),
        "attn.kv.weight": (2 * size, size),
        "attn.proj.weight": (size, size),
        "attn.proj.bias": (size,),
        "attn_norm.g": (size,),
        "mlp_norm.g": (size,),
        "mlp.0.project.weight": (2 * inner, size),
        "mlp.0.project.bias": (2 * inner,),
        "mlp.1.weight": (size, inner),
        "mlp.1.bias": (size,),
    }
    return {f"{name}.{key}": shape for key, shape in shapes.items()}


def decoder_shapes(state: int = 0, chunk: int = 12, size: int = 128) -> dict[str, tuple[int, ...]]:
    """Names and shapes of UniVLA's decoder for simulated arms, or for a real one with `state` values."""
    shapes = pool_shapes("attn_pool" if state else "latent_action_pool") | pool_shapes("visual_pool")
    if state:
        shapes |= {"proprio_proj.0.weight": (size, state), "proprio_proj.0.bias": (size,)}
        shapes |= {"proprio_proj.2.weight": (size, size), "proprio_proj.2.bias": (size,)}
    shapes["proj.0.weight"] = (7 * chunk, 2 * size if state else size)
    return shapes | {"proj.0.bias": (7 * chunk,)}


OFT_SEED, UNIVLA_SEED, ACTS = 11, 17, 32
HEAD_FILE, PROJECTOR_FILE = "action_head--1_checkpoint", "proprio_projector--1_checkpoint"


def write_oft(folder: Path, images: int, *, head: bool = True, proprio: bool = True) -> Path:
    """Write an OpenVLA-OFT folder."""
    parts = {HEAD_FILE: head_shapes()} if head else {}
    if proprio:
        parts[PROJECTOR_FILE] = projector_shapes()
    model = network(images, OFT_SEED)
    table = model.language_model.lm_head.weight  # only bins can win, so that the discrete variant says many things
    table[: VOCABULARY - 64 - 256] = 0.0
    table[VOCABULARY - 64 :] = 0.0
    return write(folder, model, parts, OFT_SEED)


def write_univla(folder: Path, *, state: int = 0) -> Path:
    """Write a UniVLA folder whose likeliest tokens are latent actions."""
    model = network(1, UNIVLA_SEED, state or 8)
    model.language_model.lm_head.weight[32001 : 32001 + ACTS] *= 40.0
    return write(folder, model, {"action_decoder": decoder_shapes(state)}, UNIVLA_SEED, ACTS)

"""Write a checkpoint folder in OpenVLA's Hugging Face layout, as :mod:`flashvla_ros.vla.checkpoint` reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from flashvla_ros.vla.keys import entries
from flashvla_ros.vla.model import PrismaticVLM
from flashvla_ros.vla.processor import ImageProcessor
from flashvla_ros.vla.tokenizer import save_tokenizer
from flashvla_ros.vla.weights import INDEX, WEIGHTS


def save_checkpoint(
    folder: Path,
    model: PrismaticVLM,
    tokenizer: Tokenizer,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write the folder that ``load_model`` reads back bit for bit.

    Official names and layout; the parts of the towers that OpenVLA never runs are left out.

    Args:
        folder: Made where it does not exist.
        model: Its `config` becomes config.json.
        tokenizer: Becomes tokenizer.json.
        dtype: Type of the weights in the files; None keeps the model's own.
        max_shard_bytes: Weights beyond it go to several files with an index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in [*folder.glob("model*.safetensors"), folder / INDEX]:
        stale.unlink(missing_ok=True)
    state = model.state_dict()
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for official, entry in entries(model).items():
        tensor = state[entry.ours].detach()
        tensor = tensor.to("cpu", dtype or tensor.dtype).contiguous().clone()
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][official] = tensor
        size += tensor.nbytes
    _write_shards(folder, shards)
    _write_json(folder / "config.json", model.config.to_dict())
    _write_json(folder / "preprocessor_config.json", ImageProcessor.from_config(model.config).to_dict())
    save_tokenizer(tokenizer, folder, model.config.llm_max_length)


def _write_shards(folder: Path, shards: list[dict[str, Tensor]]) -> None:
    if len(shards) == 1:
        save_file(shards[0], folder / WEIGHTS, metadata={"format": "pt"})
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, name))
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")

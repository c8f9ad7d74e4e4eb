"""Read and write checkpoint folders in OpenVLA's Hugging Face layout, with no network and no remote code.

A folder holds config.json, model.safetensors or its shards with an index, the tokenizer's files, and mostly
preprocessor_config.json; fine-tuned ones add dataset_statistics.json. Reading goes shard by shard, straight to the
device; every problem is one :class:`CheckpointError`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from flashvla_ros.core.errors import CheckpointError
from flashvla_ros.vla.config import OpenVLAConfig, read_json
from flashvla_ros.vla.keys import entries
from flashvla_ros.vla.model import OpenVLA
from flashvla_ros.vla.processor import ImageProcessor
from flashvla_ros.vla.tokenizer import save_tokenizer
from flashvla_ros.vla.weights import INDEX, WEIGHTS, read_weights

STATISTICS = "dataset_statistics.json"

Progress = Callable[[str, int, int], None]  # file name, its number from 1, number of files


def load_config(folder: Path) -> OpenVLAConfig:
    """Read config.json; dataset_statistics.json, which fine-tuning writes, replaces the statistics in it."""
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint folder {folder} does not exist")
    if not any(folder.iterdir()):
        raise CheckpointError(f"checkpoint folder {folder} is empty")
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds a LoRA adapter alone: merge it into its base model and save that")
    config = OpenVLAConfig.from_folder(folder)
    if (folder / STATISTICS).is_file():
        config = dataclasses.replace(config, norm_stats=read_json(folder / STATISTICS))
    if not config.norm_stats:
        raise CheckpointError(
            f"{folder / 'config.json'}: field norm_stats is missing, and there is no {STATISTICS}: "
            f"copy the one that training wrote"
        )
    return config


def load_model(
    folder: Path,
    config: OpenVLAConfig,
    device: torch.device,
    dtype: torch.dtype,
    attention: str = "sdpa",
    progress: Progress | None = None,
) -> OpenVLA:
    """Build the model without memory and fill it from the folder's shards, each tensor straight on its device."""
    model = build_empty(config, attention)
    known = entries(model)
    stored = read_weights(folder)
    stored.check(known, config)
    for number, file in enumerate(stored.files, start=1):
        if progress is not None:
            progress(file.name, number, len(stored.files))
        loaded: dict[str, Tensor] = {}
        names = [name for name in known if stored.tensors[name].file == file]
        for name, tensor in stored.read(file, names, device):
            # A copy even where nothing changes: the file is mapped, and may be overwritten while the model runs.
            loaded[known[name].ours] = tensor.to(dtype, copy=tensor.device.type == "cpu")
        model.load_state_dict(loaded, strict=False, assign=True)
    model.tie()
    model.restore_buffers(device)
    return model.eval().requires_grad_(False)


def build_empty(config: OpenVLAConfig, attention: str = "sdpa") -> OpenVLA:
    """Build the model without memory for its weights."""
    with torch.device("meta"):
        return OpenVLA(config, attention)


def save_checkpoint(
    folder: Path,
    model: OpenVLA,
    tokenizer: Tokenizer,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write the folder that :func:`load_model` reads back bit for bit.

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
    for entry in entries(model).values():
        tensor = state[entry.ours].detach()
        tensor = tensor.to("cpu", dtype or tensor.dtype).contiguous().clone()
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][entry.official] = tensor
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

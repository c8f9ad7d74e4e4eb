"""Read and write checkpoint folders in OpenVLA's Hugging Face layout, with no network and no remote code.

A folder holds config.json, model.safetensors or its shards with an index, the tokenizer's files, and mostly
preprocessor_config.json; fine-tuned ones add dataset_statistics.json. Reading goes shard by shard, straight to the
device; every problem is one :class:`CheckpointError`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from flashvla_ros.core.errors import CheckpointError
from flashvla_ros.vla.config import OpenVLAConfig, read_json
from flashvla_ros.vla.keys import Entry, entries, is_unused
from flashvla_ros.vla.model import OpenVLA
from flashvla_ros.vla.processor import ImageProcessor
from flashvla_ros.vla.tokenizer import save_tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
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
        raise CheckpointError(f"{folder / 'config.json'}: field norm_stats is missing, and there is no {STATISTICS}")
    return config


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, in the order of their names."""
    if (folder / INDEX).is_file():
        shards = read_json(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise CheckpointError(f"{folder / INDEX}: field weight_map is missing")
        files = [folder / name for name in sorted(set(shards.values()))]
        if missing := [file.name for file in files if not file.is_file()]:
            raise CheckpointError(f"{folder} lacks {', '.join(missing)}, which {INDEX} lists")
        return files
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if pickles := sorted(file.name for pattern in ("*.bin", "*.pt") for file in folder.glob(pattern)):
        raise CheckpointError(
            f"{folder} has pickled weights ({pickles[0]}), which can run code when read: save them as safetensors"
        )
    raise CheckpointError(f"{folder} has no weights: neither {WEIGHTS} nor {INDEX} is there")


def load_model(
    folder: Path,
    config: OpenVLAConfig,
    device: torch.device,
    dtype: torch.dtype,
    attention: str = "sdpa",
    progress: Progress | None = None,
) -> OpenVLA:
    """Build the model without memory and fill it from the folder's shards, each tensor straight on its device."""
    with torch.device("meta"):
        model = OpenVLA(config, attention)
    known = entries(model)
    seen: set[str] = set()
    unexpected: list[str] = []
    files = weight_files(folder)
    for number, file in enumerate(files, start=1):
        if progress is not None:
            progress(file.name, number, len(files))
        loaded: dict[str, Tensor] = {}
        for name, tensor in _tensors(file, known, device, unexpected):
            seen.add(name)
            # A copy even where nothing changes: the file is mapped, and may be overwritten while the model runs.
            loaded.update(known[name].load(tensor.to(dtype, copy=tensor.device.type == "cpu")))
        model.load_state_dict(loaded, strict=False, assign=True)
    _check_complete(
        folder, [name for name in known if name not in seen], [n for n in unexpected if not is_unused(n, config)]
    )
    model.restore_buffers(device)
    return model.eval().requires_grad_(False)


def _tensors(
    file: Path, known: Mapping[str, Entry], device: torch.device, unexpected: list[str]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of one file that the model uses; the names of the others go to `unexpected`."""
    try:
        with safe_open(file, framework="pt", device=str(device)) as shard:
            for name in shard.keys():  # noqa: SIM118, not a dict
                if name not in known:
                    unexpected.append(name)
                    continue
                shape = tuple(shard.get_slice(name).get_shape())
                if shape != known[name].shape:
                    raise CheckpointError(
                        f"{file}: tensor {name} has shape {list(shape)}, config.json asks for {list(known[name].shape)}"
                    )
                yield name, shard.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read; it is damaged or cut short: {error}") from error


def _check_complete(folder: Path, missing: list[str], unexpected: list[str]) -> None:
    problems = [
        f"{len(names)} {what} tensors: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if problems:
        raise CheckpointError(f"the weights in {folder} do not fit its config.json: {'; '.join(problems)}")


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
        tensor = entry.save(state).detach()
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

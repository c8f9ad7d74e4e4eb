"""Read checkpoint folders in OpenVLA's Hugging Face layout, with no network and no remote code.

A folder holds config.json, model.safetensors or its shards with an index, the tokenizer's files, and mostly
preprocessor_config.json; fine-tuned ones add dataset_statistics.json. Reading goes shard by shard, straight to the
device; every problem is one :class:`CheckpointError`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from flashvla_ros.core.errors import CheckpointError
from flashvla_ros.core.files import is_pointer
from flashvla_ros.vla.config import OpenVLAConfig, read_json
from flashvla_ros.vla.keys import EMBEDDING, HEAD, NORM, Entry, entries
from flashvla_ros.vla.model import PrismaticVLM
from flashvla_ros.vla.weights import StoredWeights, read_weights

STATISTICS = "dataset_statistics.json"
_SPEAKING = (EMBEDDING, NORM, HEAD)  # with zeros alone in one of them, the instruction or the image changes nothing

Progress = Callable[[str, int, int], None]  # file name, its number from 1, number of files


def load_config(folder: Path) -> OpenVLAConfig:
    """Read config.json; dataset_statistics.json, which fine-tuning writes, replaces the statistics in it.

    Raises:
        CheckpointError: The folder as a whole is no OpenVLA checkpoint, or one of the two files is wrong.
    """
    check_folder(folder)
    config = OpenVLAConfig.from_folder(folder)
    source = folder / STATISTICS
    if source.is_file():
        config = dataclasses.replace(config, norm_stats=read_json(source))
        if not config.norm_stats:
            raise CheckpointError(f"{source} names no data set: copy the one that training wrote")
    elif not config.norm_stats:
        raise CheckpointError(
            f"{folder / 'config.json'}: field norm_stats is missing, and there is no {STATISTICS}: "
            f"copy the one that training wrote"
        )
    else:
        source = folder / "config.json"
    action = config.norm_stats.get("action")
    if isinstance(action, dict) and "q01" in action:  # as OpenVLA's data loader keeps them in its cache
        raise CheckpointError(
            f"{source} holds the statistics of one data set without its name: "
            f'write {{"NAME": …}} around them, and NAME is the value of model.unnorm_key'
        )
    return config


def check_folder(folder: Path) -> None:
    """Refuse, with :class:`CheckpointError`, what is not one whole checkpoint by the names and first bytes of files."""
    if not folder.is_dir():
        raise CheckpointError(
            f"checkpoint folder {folder} does not exist: give a folder of this machine, nothing is fetched"
        )
    try:
        inside = sorted(folder.iterdir())
        pointers = [file.name for file in inside if file.is_file() and is_pointer(file)]
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename or folder}: {error.strerror}") from error
    if not inside:
        raise CheckpointError(f"checkpoint folder {folder} is empty")
    if pointers:
        raise CheckpointError(
            f"{folder}: {', '.join(pointers)} are pointers of Git LFS, not files: run git lfs pull there"
        )
    has_config = (folder / "config.json").is_file()
    if not has_config and (snapshots := sorted((folder / "snapshots").glob("*/config.json"))):
        raise CheckpointError(f"{folder} is a download cache: give {snapshots[-1].parent}")
    if (folder / "adapter_config.json").is_file():
        if has_config and any(folder.glob("model*.safetensors")):
            raise CheckpointError(
                f"{folder} has the weights of a model and a LoRA adapter (adapter_config.json): merge the adapter and "
                f"save that, or move its files away if it is merged already; the official code would load its base"
            )
        raise CheckpointError(f"{folder} holds a LoRA adapter alone: merge it into its base model and save that")
    if any((folder / "checkpoints").glob("*.pt")):
        raise CheckpointError(
            f"{folder} is a run of OpenVLA's train.py: convert it with its convert_openvla_weights_to_hf.py"
        )


def load_model(
    folder: Path,
    config: OpenVLAConfig,
    device: torch.device,
    dtype: torch.dtype,
    attention: str = "sdpa",
    progress: Progress | None = None,
) -> PrismaticVLM:
    """Build the model without memory and fill it from the folder's shards, each tensor straight on its device."""
    model = build_empty(config, attention)
    known = entries(model)
    stored = read_weights(folder)
    stored.check(known, config)
    loaded: dict[str, Tensor] = {}
    for number, file in enumerate(stored.files, start=1):
        if progress is not None:
            progress(file.name, number, len(stored.files))
        loaded.update((known[name].ours, tensor) for name, tensor in _values(stored, file, known, device, dtype))
    model.load_state_dict(loaded, strict=False, assign=True)
    if config.tied and HEAD in stored.tensors:
        _check_tied(stored, loaded[EMBEDDING], device)
    model.tie()
    return model.eval().requires_grad_(False)


def check_values(stored: StoredWeights, known: Mapping[str, Entry], config: OpenVLAConfig, dtype: torch.dtype) -> None:
    """Read every weight once, one at a time, by the rules of :func:`load_model`.

    Raises:
        CheckpointError: Names weights that are not finite in `dtype`, or a tied projection that is not.
    """
    cpu = torch.device("cpu")
    for file in stored.files:
        for name, tensor in _values(stored, file, known, cpu, dtype):
            if config.tied and HEAD in stored.tensors and known[name].ours == EMBEDDING:
                _check_tied(stored, tensor, cpu)


def _values(
    stored: StoredWeights, file: Path, known: Mapping[str, Entry], device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Yield one file's tensors by their official names; refuse in the end what is not finite or says nothing."""
    extremes: dict[str, Tensor] = {}
    for name, tensor in stored.read(file, [name for name in known if stored.tensors[name].file == file], device):
        # A copy even where nothing changes: the file is mapped, and may be overwritten while the model runs.
        converted = tensor.to(dtype, copy=tensor.device.type == "cpu")
        if converted.numel():
            extremes[name] = torch.stack(torch.aminmax(converted))
        yield name, converted
    if extremes:  # the device is asked once a file
        found = torch.stack(list(extremes.values())).tolist()
        _check_extremes(file, dict(zip(extremes, found, strict=True)), known, dtype)


def _check_extremes(
    file: Path, extremes: Mapping[str, list[float]], known: Mapping[str, Entry], dtype: torch.dtype
) -> None:
    """Refuse tensors with a NaN or an infinity, and those of zeros behind which every input gives one answer."""
    if bad := [name for name, ends in extremes.items() if not all(map(math.isfinite, ends))]:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        kind = str(dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{file} has values that are not finite in {kind}, in {', '.join(bad[:3])}{more}: copy the file again, or "
            f"set model.dtype to a type of wider range"
        )
    if silent := [name for name, ends in extremes.items() if known[name].ours in _SPEAKING and not any(ends)]:
        raise CheckpointError(f"{file} has nothing but zeros in {', '.join(silent)}: copy the file again")


def _check_tied(stored: StoredWeights, embedding: Tensor, device: torch.device) -> None:
    """Refuse an output projection that differs from the table of embeddings which config.json says it is."""
    file = stored.tensors[HEAD].file
    for _, head in stored.read(file, [HEAD], device):
        if not torch.equal(head.to(embedding.dtype), embedding):
            raise CheckpointError(
                f"{file}: {HEAD} is not the table of embeddings, though config.json has tie_word_embeddings true: "
                f"use the config.json of these weights"
            )


def build_empty(config: OpenVLAConfig, attention: str = "sdpa") -> PrismaticVLM:
    """Build the model without memory for its weights."""
    with torch.device("meta"):
        return PrismaticVLM(config, attention)

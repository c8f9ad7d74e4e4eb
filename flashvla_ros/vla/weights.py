"""A checkpoint's safetensors files by their headers: what is wrong with them is known before anything is loaded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flashvla_ros.core.errors import CheckpointError
from flashvla_ros.vla.config import OpenVLAConfig, read_json
from flashvla_ros.vla.keys import Entry, is_unused

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}  # what weights may be stored as


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is, its shape, and its type by safetensors' name."""

    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def parameters(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return self.parameters * _BYTES[self.dtype]


@dataclasses.dataclass(frozen=True)
class StoredWeights:
    """The files, in the order of their names, and every tensor in them by its official name."""

    files: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor]

    def check(self, known: Mapping[str, Entry], config: OpenVLAConfig) -> None:
        """Compare with the tensors that the model needs.

        Raises:
            CheckpointError: Names tensors that are missing, unexpected or of another shape.
        """
        missing = [name for name in known if name not in self.tensors]
        unexpected = [name for name in self.tensors if name not in known and not is_unused(name, config)]
        misshapen = [
            f"{name} has shape {list(self.tensors[name].shape)}, config.json asks for {list(entry.shape)}"
            for name, entry in known.items()
            if name in self.tensors and self.tensors[name].shape != entry.shape
        ]
        lists = (("missing", missing, 5), ("unexpected", unexpected, 5), ("misshapen", misshapen, 2))
        if problems := [f"{len(names)} {what} tensors: {_some(names, most)}" for what, names, most in lists if names]:
            raise CheckpointError(
                f"the weights in {self.files[0].parent} do not fit its config.json: {'; '.join(problems)}: "
                f"use the config.json of these weights"
            )

    def read(self, file: Path, names: Sequence[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """Yield some tensors of one file, each straight on its device."""
        try:
            with safe_open(file, framework="pt", device=str(device)) as shard:
                for name in names:
                    yield name, shard.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from error


def read_weights(folder: Path) -> StoredWeights:
    """Read the headers of a checkpoint's weights.

    Raises:
        CheckpointError: There are none that can be used, a shard is missing or damaged, or the weights are quantised.
    """
    files = tuple(_weight_files(folder))
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118  # not a mapping
                    view = shard.get_slice(name)
                    tensors[name] = StoredTensor(file, tuple(view.get_shape()), view.get_dtype())
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from error
    for name, tensor in tensors.items():
        if tensor.dtype not in _BYTES:
            raise CheckpointError(
                f"{tensor.file}: tensor {name} is of type {tensor.dtype}, so the weights are quantised: "
                f"give a checkpoint saved in bfloat16, float16 or float32"
            )
    return StoredWeights(files, tensors)


def _weight_files(folder: Path) -> list[Path]:
    """The files that the official code reads: one file goes before an index, and both before pickles."""
    single, index = folder / WEIGHTS, folder / INDEX
    shards = _shards(index) if index.is_file() else []
    missing = [file.name for file in shards if not file.is_file()]
    if single.is_file():
        if shards and not missing:
            raise CheckpointError(
                f"{folder} holds two models, {WEIGHTS} and the shards of {INDEX}: delete the older of the two; "
                f"the official code reads {WEIGHTS}"
            )
        return [single]  # an index whose shards are gone is what saving over them leaves
    if missing:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}, which {INDEX} lists: copy these files too")
    if shards:
        return shards
    if pickles := sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)):
        raise CheckpointError(
            f"{folder} has pickled weights ({pickles[0]}), which can run code when read: save them as safetensors"
        )
    if strays := sorted(file.name for file in folder.glob("model-*.safetensors")):
        raise CheckpointError(f"{folder} has shards ({strays[0]}) but no {INDEX}: copy that file too")
    if (folder / "adapter_model.safetensors").is_file():
        raise CheckpointError(f"{folder} holds a LoRA adapter alone: merge it into its base model and save that")
    raise CheckpointError(f"{folder} has no weights: neither {WEIGHTS} nor {INDEX} is there: copy them")


def _shards(index: Path) -> list[Path]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{index}: field weight_map is missing: copy the file again")
    if odd := [name for name in shards.values() if not isinstance(name, str) or Path(name).name != name]:
        raise CheckpointError(f"{index}: weight_map must name files of this folder, got {odd[0]!r}: copy it again")
    return [index.parent / name for name in sorted(set(shards.values()))]


def _damaged(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{file} cannot be read; it is damaged or cut short at {file.stat().st_size} bytes: copy it again ({error})"
    )


def _some(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")

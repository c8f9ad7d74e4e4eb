"""Parts that stand in a file of their own beside the network: heads, projectors, decoders; as .safetensors or .pt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from flashvla_ros.core.errors import CheckpointError
from flashvla_ros.core.types import FloatArray
from flashvla_ros.vla.model import says_nothing

Tensors = dict[str, Tensor]


def find_part(folder: Path, name: str) -> Path | None:
    """Return the one file of a part, ``NAME--STEPS_checkpoint`` or ``NAME…``; None where there is none.

    Of one name as .safetensors and as .pt the first is taken.

    Raises:
        CheckpointError: There are several, so that nobody can tell which belongs to the network.
    """
    files = {file.stem: file for kind in ("pt", "safetensors") for file in sorted(folder.glob(f"{name}*.{kind}"))}
    if len(files) > 1:
        names = ", ".join(file.name for file in files.values())
        raise CheckpointError(f"{folder} has several files of its {name}: {names}: keep the one of these weights")
    return next(iter(files.values()), None)


def read_part(path: Path) -> Tensors:
    """Read a part's tensors; the prefix ``module.`` of a model that several GPUs trained is left out.

    Raises:
        CheckpointError: The file is damaged, holds something else than tensors, or would run code.
    """
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise CheckpointError(
            f"{path} is a pickle that would run code when read, or damaged: save its tensors alone"
        ) from error
    except Exception as error:  # of many types where the file is damaged
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} cannot be read, copy it again: {reason}") from error
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path} holds something else than a module's tensors: give the file that training saved")
    return {str(name).removeprefix("module."): value for name, value in found.items()}


def under(tensors: Tensors, prefix: str) -> Tensors:
    """Return the tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def fill(module: nn.Module, tensors: Tensors, path: Path, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Fill a module that was built without memory, on its device.

    Raises:
        CheckpointError: Names what the file lacks, what it has too much, or a tensor of another shape.
    """
    known = module.state_dict()
    wrong = [f"{name} is missing" for name in known if name not in tensors]
    wrong += [f"{name} is unexpected" for name in tensors if name not in known]
    wrong += [
        f"{name} has shape {list(tensors[name].shape)} instead of {list(value.shape)}"
        for name, value in known.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{path} does not fit this checkpoint: {'; '.join(wrong[:3])}{more}")
    converted = {name: value.to(device, dtype, copy=True) for name, value in tensors.items()}
    if bad := [name for name, value in converted.items() if not value.isfinite().all()]:
        raise CheckpointError(f"{path} has values that are not finite in {dtype}, in {bad[0]}: copy the file again")
    module.load_state_dict(converted, assign=True)
    return module.eval().requires_grad_(False)


def to_chunk(said: Tensor, steps: int) -> FloatArray:
    """Return what a head says of `steps` time steps, T · D values, as float64 [T, D] on the host.

    Raises:
        ActionError: They are not finite, or the same at every step (of one step: in every dimension), as weights of
            zero make them.
    """
    chunk = said.float().cpu().numpy().astype(np.float64).reshape(steps, -1)
    steady = chunk if steps > 1 else chunk.T
    if not np.isfinite(chunk).all() or (len(steady) > 1 and not np.ptp(steady, axis=0).any()):
        raise says_nothing("the action's values are not finite or all equal")
    return chunk

"""On what the model runs: device, floating-point type and attention implementation, from the model parameters."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import os
import shutil
from contextlib import AbstractContextManager

import torch

from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.settings import ModelSettings

_LOG = logging.getLogger(__name__)
_FLASH = "flash_attention_2"


@dataclasses.dataclass(frozen=True)
class Backend:
    """What ``auto`` came to. Attention has transformers' name; engine is eager, static or compiled."""

    device: torch.device
    dtype: torch.dtype
    attention: str
    engine: str = "eager"

    @classmethod
    def resolve(cls, settings: ModelSettings) -> Backend:
        """Choose where the parameters say auto, and log why; refuse what this machine cannot do."""
        device = _device(settings.device)
        dtype = _dtype(settings.dtype, device)
        attention = _attention(settings.attention, device, dtype)
        return cls(device, dtype, attention, _engine(settings.engine, device, attention))

    @property
    def dtype_name(self) -> str:
        """The floating-point type as ``model.dtype`` has it."""
        return str(self.dtype).removeprefix("torch.")

    def current(self) -> AbstractContextManager[object]:
        """Make the device the calling thread's own: streams, events and graphs belong to the current one."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _device(name: str) -> torch.device:
    if name == "auto":
        chosen = "cuda:0" if torch.cuda.is_available() else "cpu"
        _LOG.info("device %s: %s", chosen, "a GPU is there" if chosen != "cpu" else "torch finds no CUDA GPU")
        return torch.device(chosen)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).strip().partition("\n")[0]
        raise SettingsError(f"model.device {name!r} is not usable on this machine: {reason}") from error
    if device.type not in ("cpu", "cuda"):
        raise SettingsError(f"model.device must be auto, cpu, cuda or cuda:<number>, got {name!r}")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
        _LOG.info("dtype %s: the default on %s", name, device.type)
    return getattr(torch, name)


def _attention(name: str, device: torch.device, dtype: torch.dtype) -> str:
    obstacle = ""
    if device.type != "cuda":
        obstacle = f"the device is {device.type}, not CUDA"
    elif importlib.util.find_spec("flash_attn") is None:
        obstacle = "the package flash-attn is not installed"
    elif dtype == torch.float32:
        obstacle = "it needs bfloat16 or float16 weights"
    if name == "auto":
        name = "sdpa" if obstacle else _FLASH
        _LOG.info("attention %s%s", name, f": no FlashAttention 2, {obstacle}" if obstacle else ": it is installed")
    elif name == _FLASH and obstacle:
        raise SettingsError(f"model.attention {_FLASH} cannot run here, {obstacle}: use auto or sdpa")
    return name


def _engine(name: str, device: torch.device, attention: str) -> str:
    if name in ("static", "compiled") and attention == "eager":
        raise SettingsError(
            f"model.engine {name} computes attention with SDPA or FlashAttention 2: set model.attention"
        )
    compiler = os.environ.get("CXX", "g++")
    if name == "compiled" and shutil.which(compiler) is None:
        raise SettingsError(f"model.engine compiled needs the C++ compiler {compiler}: install it or set static")
    if name == "auto":
        name = "eager" if attention == "eager" else "static"
        graphs = "with CUDA graphs" if device.type == "cuda" else "without graphs on the CPU"
        _LOG.info("engine %s: %s", name, "model.attention is eager" if name == "eager" else graphs)
    return name

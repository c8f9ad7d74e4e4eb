"""A checkpoint folder: what it is, what is missing or broken, its action space, memory need and budgets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flashvla_ros.core.errors import CheckpointError, FlashVLAError, SettingsError
from flashvla_ros.core.settings import ModelSettings, PruningSettings, Settings
from flashvla_ros.core.types import POSITION_NAMES
from flashvla_ros.doctor.finding import Finding, Level, ok
from flashvla_ros.doctor.machine import available_memory
from flashvla_ros.vla.arch.base import Outline
from flashvla_ros.vla.arch.table import architecture_of
from flashvla_ros.vla.backend import Backend
from flashvla_ros.vla.checkpoint import build_empty, check_values, load_config
from flashvla_ros.vla.config import OpenVLAConfig, check_cameras, model_size
from flashvla_ros.vla.gripper import check_gripper, describe_gripper
from flashvla_ros.vla.keys import entries
from flashvla_ros.vla.processor import ImageProcessor, PromptEncoder
from flashvla_ros.vla.pruning.select import METHODS, check_layer, kept_count
from flashvla_ros.vla.shapes import DINOV2
from flashvla_ros.vla.statistics import Bounds, choose_key
from flashvla_ros.vla.weights import read_weights

_PROMPT = "pick up the red block and put it on the blue plate"  # of usual length
_TEXT = 20  # tokens of such a prompt
_BUDGETS = (0.75, 0.625, 0.5, 0.375, 0.25)
_WORKSPACE = 0.5e9  # bytes on top of weights and cache: activations, kernels; more with CUDA's own context

_FASTEST_M_S = 3.0  # of an arm's hand


def check_checkpoint(folder: Path, settings: Settings) -> Iterator[Finding]:
    """Look at everything in the folder that a node would need; no more than one weight is in memory at a time."""
    yield ok("checkpoint", str(folder))
    model, chosen = dataclasses.replace(settings.model, checkpoint=str(folder)), True
    try:
        statistics = load_config(folder).norm_stats
        try:
            choose_key(statistics, model.unnorm_key)
        except CheckpointError as error:
            yield from _data_sets(statistics)
            yield Finding.failure_of("unnorm_key", error)
            model, chosen = dataclasses.replace(model, unnorm_key=next(iter(statistics))), False
        architecture = architecture_of(model)
        outline = architecture.outline(folder, model)
    except CheckpointError as error:
        yield Finding.failure_of("config", error)
        return
    config = outline.config
    yield ok("model", f"{architecture.title}: {describe(config)}")
    for name, text in outline.parts.items():
        yield ok(name, text)
    yield ok("chunk", _chunk(outline))
    yield _weights(folder, config, settings)
    yield from _inputs(folder, outline, settings)
    if chosen:
        yield from _actions(outline, settings)
    yield _memory(outline, settings)
    yield _budgets(config, settings)
    yield ok("pruning", describe_method(settings.pruning))


def describe_method(pruning: PruningSettings) -> str:
    """Return what ``pruning.method`` looks at and whether it needs attention weights."""
    if pruning.method == "none":
        return "none: nothing is scored, and the gate has no sets of tokens to compare"
    method = METHODS[pruning.method]
    reads = method.reads if pruning.layer else method.reads_at_0
    need = "one row of attention weights, of one layer" if method.needs_attention else "no attention weights"
    return f"{pruning.method} ({method.source}) looks at {reads}; needs {need}"


def describe(config: OpenVLAConfig) -> str:
    """Return the architecture in a line."""
    towers = " + ".join("DINOv2" if tower.model_type == DINOV2 else "SigLIP" for tower in config.towers)
    llama = config.llama()
    return (
        f"{towers} at {config.towers[0].image_size} px, {config.visual_tokens} visual tokens; "
        f"Llama with {llama.num_hidden_layers} layers of {llama.hidden_size}"
    )


def _weights(folder: Path, config: OpenVLAConfig, settings: Settings) -> Finding:
    try:
        dtype = Backend.resolve(settings.model).dtype
    except FlashVLAError:  # told with the memory
        dtype = torch.float32
    try:
        stored, known = read_weights(folder), entries(build_empty(config))
        stored.check(known, config)
        check_values(stored, known, config, dtype)
    except CheckpointError as error:
        return Finding.failure_of("weights", error)
    parameters = sum(tensor.parameters for tensor in stored.tensors.values())
    nbytes = sum(tensor.nbytes for tensor in stored.tensors.values())
    types = "/".join(sorted({tensor.dtype for tensor in stored.tensors.values()}))
    files = f"{len(stored.files)} file{'s' if len(stored.files) > 1 else ''}"
    return ok("weights", f"complete and finite: {_count(parameters)} parameters, {_size(nbytes)} of {types} in {files}")


def _inputs(folder: Path, outline: Outline, settings: Settings) -> Iterator[Finding]:
    config = outline.config
    try:
        prompts = PromptEncoder.from_folder(folder, config, outline.rows)
        prompt, longest = prompts(_PROMPT), prompts.max_tokens
        yield ok(
            "tokenizer", f"a usual prompt has {len(prompt)} tokens, the last one is {prompt[-1]}; at most {longest}"
        )
    except FlashVLAError as error:
        yield Finding.failure_of("tokenizer", error)
    try:
        processor = ImageProcessor.from_folder(folder, config)
    except CheckpointError as error:
        yield Finding.failure_of("images", error)
        return
    hints = [folder.name, *config.norm_stats]
    augmented = any(word in hint.lower() for hint in hints for word in ("libero", "image_aug"))
    yield _images(processor, augmented, settings.model)
    try:
        check_cameras(settings.camera.names, config)
    except SettingsError as error:
        yield Finding.failure_of("cameras", error)


def _images(processor: ImageProcessor, augmented: bool, model: ModelSettings) -> Finding:
    """How an image becomes a square; that training had augmentation is told by names alone, in no file."""
    text = f"{processor.strategy} to {processor.image_size}x{processor.image_size}"
    if model.center_crop < 1.0:
        text += f", then the centre {100 * model.center_crop:g} % of its area"
    elif augmented:
        text += ", all of it; one that was fine-tuned with image augmentation expects the centre 90 % of its area"
        return Finding("images", Level.WARNING, text, "set model.center_crop to 0.9 if this is such a checkpoint")
    return ok("images", text)


def _data_sets(statistics: Mapping[str, Any]) -> Iterator[Finding]:
    """Every data set, where one is to be chosen."""
    for key in statistics:
        try:
            yield ok("actions", f"{key}: {_ranges(Bounds.from_statistics(statistics, key))}")
        except CheckpointError as error:
            yield Finding.failure_of("actions", error)


def _chunk(outline: Outline) -> str:
    """How an action is made, and what that leaves for pruning to save."""
    kept, layer = PruningSettings().keep_ratio, PruningSettings().layer
    size, text = model_size(outline.config), _TEXT + outline.layout.rows
    count, actions = outline.config.visual_tokens, max(outline.decoded, 1)
    flops = [size.inference_flops(k, layer, text, actions) for k in (kept_count(kept, count), count)]
    passes = "one pass" if actions == 1 else f"{actions} passes"
    bound = "bound by arithmetic" if actions == 1 else "all but the first bound by memory"
    share = 100 * flops[0] / flops[1]
    return (
        f"{outline.chunk_size} time steps of {outline.bounds.size} dimensions in {passes} over the weights, {bound}; "
        f"pruning to {100 * kept:g} % of the visual tokens leaves {share:.0f} % of all FLOPs"
    )


def _actions(outline: Outline, settings: Settings) -> Iterator[Finding]:
    """Whether the statistics in force fit what the parameters declare."""
    chosen = outline.bounds
    key = settings.model.unnorm_key or next(iter(outline.config.norm_stats))
    yield ok("actions", f"{key}: {_ranges(chosen)}")
    names = settings.action.names
    if len(names) != chosen.size:
        text = f"{key} has {chosen.size} action dimensions, action.names declares {len(names)}: {', '.join(names)}"
        remedy = f"set action.names and action.kinds to the {chosen.size} dimensions that the checkpoint was trained on"
        yield Finding("mapping", Level.FAILURE, text, remedy)
    else:
        dimensions = zip(names, settings.action.kinds, strict=True)
        yield ok("mapping", ", ".join(f"{name} ({kind})" for name, kind in dimensions))
        try:
            check_gripper(settings, chosen)
            yield ok("gripper", describe_gripper(settings))
        except SettingsError as error:
            yield Finding.failure_of("gripper", error)
        yield from _speeds(chosen, settings)


def _speeds(bounds: Bounds, settings: Settings) -> Iterator[Finding]:
    """Motions that no arm makes: the actions of LIBERO's data sets are shares of a controller's scale, not metres."""
    action = settings.action
    greatest = np.maximum(np.abs(bounds.low), np.abs(bounds.high))
    for name, kind, value in zip(action.names, action.kinds, greatest, strict=True):
        speed = value / action.dt_s if kind == "delta" else value
        if name in POSITION_NAMES and kind in ("delta", "velocity") and speed > _FASTEST_M_S:
            text = f"the statistics let {name} move at {speed:.3g} m/s"
            remedy = "its actions may be no metres: scale them behind this node, and set limits.lower and limits.upper"
            yield Finding("speed", Level.WARNING, text, remedy)
            return


def _ranges(bounds: Bounds) -> str:
    low = [value if scaled else -1.0 for value, scaled in zip(bounds.low, bounds.mask, strict=True)]
    high = [value if scaled else 1.0 for value, scaled in zip(bounds.high, bounds.mask, strict=True)]
    ranges = ", ".join(f"{one:.3g}…{other:.3g}" for one, other in zip(low, high, strict=True))
    return f"{bounds.size} dimensions in {ranges}"


def memory_need(outline: Outline, dtype: torch.dtype) -> tuple[int, int]:
    """Return the bytes of the weights that are loaded, and of the key-value cache of a usual unpruned prompt."""
    config, llama = outline.config, outline.config.llama()
    parameters = sum(parameter.numel() for parameter in build_empty(config).parameters()) + outline.beside
    weights = parameters * dtype.itemsize
    if outline.layout.full:  # nothing is decoded behind it
        return weights, 0
    cache = 2 * llama.num_hidden_layers * llama.groups * llama.head_size * (config.visual_tokens + 64) * dtype.itemsize
    return weights, cache


def _memory(outline: Outline, settings: Settings) -> Finding:
    try:
        backend = Backend.resolve(settings.model)
    except FlashVLAError as error:
        return Finding.failure_of("memory", error)
    weights, cache = memory_need(outline, backend.dtype)
    need = weights + cache + _WORKSPACE
    on_gpu = backend.device.type == "cuda"
    free = torch.cuda.mem_get_info(backend.device)[0] if on_gpu else available_memory()
    text = (
        f"{_size(weights)} of {backend.dtype_name} weights, {_size(cache)} of cache: about {_size(need)} "
        f"on {backend.device}, where {_size(free)} are free"
    )
    if need <= free or not free:
        return ok("memory", text)
    smaller = memory_need(outline, torch.bfloat16)[0]
    remedy = "use a GPU with more memory, or free some"
    if backend.dtype == torch.float32 and smaller + cache + _WORKSPACE <= free:
        remedy = f"set model.dtype to bfloat16, which needs {_size(smaller)} for the weights"
    return Finding("memory", Level.FAILURE, text, remedy)


def _budgets(config: OpenVLAConfig, settings: Settings) -> Finding:
    count, depth = config.visual_tokens, config.llama().num_hidden_layers
    try:
        check_layer(settings.pruning, depth)
    except FlashVLAError as error:
        return Finding.failure_of("budgets", error)
    ratios = sorted({*_BUDGETS, settings.pruning.keep_ratio}, reverse=True)
    budgets = ", ".join(f"{ratio:g} → {kept_count(ratio, count)}" for ratio in ratios)
    return ok(
        "budgets",
        f"pruning.keep_ratio → tokens kept of {count}: {budgets}; in force {settings.pruning.keep_ratio:g}, "
        f"pruning.layer {settings.pruning.layer} of 0 to {depth - 1}",
    )


def _size(nbytes: float) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"

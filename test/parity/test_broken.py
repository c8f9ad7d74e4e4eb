"""The parity checks fail where something is broken on purpose, so that passing them means something."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from official import (
    DATA,
    DATA_SETS,
    check_actions,
    check_center_crop,
    check_logits,
    check_pixels,
    check_projector,
    check_prompts,
    check_towers,
    load,
)
from torch import nn

from flashvla_ros.core.errors import CheckpointError
from flashvla_ros.vla import checkpoint as checkpoint_module
from flashvla_ros.vla import processor as processor_module
from flashvla_ros.vla.action_codec import ActionCodec
from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy
from flashvla_ros.vla.center_crop import center_crop
from flashvla_ros.vla.keys import Entry, entries
from flashvla_ros.vla.processor import ImageProcessor

KEY = DATA_SETS["fused"][0]


def _load(change: Callable[[OpenVLAPolicy], object] | None = None) -> OpenVLAPolicy:
    policy = load(DATA / "fused", KEY)
    if change is not None:
        change(policy)
    return policy


def _tanh_gelu(policy: OpenVLAPolicy) -> None:
    """SigLIP with the activation that transformers gives it by default, instead of timm's."""
    for block in policy.model.towers[1].blocks:
        block._activation = nn.GELU(approximate="tanh")


def _no_layer_scale(policy: OpenVLAPolicy) -> None:
    for block in policy.model.towers[0].blocks:
        block.ls1.scale_factor.data.fill_(1.0)


def _one_block_less(policy: OpenVLAPolicy) -> None:
    del policy.model.towers[0].blocks[-1]


def _one_register_less(policy: OpenVLAPolicy) -> None:
    tower = policy.model.towers[0]
    tower.reg_token = nn.Parameter(tower.reg_token[:, :-1])


def _towers_exchanged(policy: OpenVLAPolicy) -> None:
    policy.model.towers = nn.ModuleList(reversed(policy.model.towers))


@pytest.mark.parametrize(
    "change", [_tanh_gelu, _no_layer_scale, _one_block_less, _one_register_less, _towers_exchanged]
)
def test_a_broken_tower_is_noticed(change: Callable[[OpenVLAPolicy], None]) -> None:
    policy = _load(change)
    with pytest.raises(AssertionError):
        check_towers("fused", policy)
    with pytest.raises(AssertionError):
        check_logits("fused", policy)


def _exchange(first: str, second: str) -> Callable[..., dict[str, Entry]]:
    """Return a key map in which two official tensors of one shape fill each other's places."""

    def broken(model: torch.nn.Module) -> dict[str, Entry]:
        known = entries(model)  # type: ignore[arg-type]
        one, other = known[first], known[second]
        known[first] = dataclasses.replace(one, ours=other.ours)
        known[second] = dataclasses.replace(other, ours=one.ours)
        return known

    return broken


BLOCK = "vision_backbone.{}.blocks.1.{}.weight"
LAYER = "language_model.model.layers.1.{}.weight"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (BLOCK.format("featurizer", "norm1"), BLOCK.format("featurizer", "norm2")),
        (BLOCK.format("fused_featurizer", "norm1"), BLOCK.format("fused_featurizer", "norm2")),
        (
            "vision_backbone.featurizer.blocks.0.ls1.scale_factor",
            "vision_backbone.featurizer.blocks.0.ls2.scale_factor",
        ),
        (LAYER.format("self_attn.q_proj"), LAYER.format("self_attn.k_proj")),
        (LAYER.format("mlp.gate_proj"), LAYER.format("mlp.up_proj")),
    ],
)
def test_a_wrong_key_is_noticed(first: str, second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "entries", _exchange(first, second))
    with pytest.raises(AssertionError):
        check_logits("fused", _load())


def test_query_key_and_value_in_another_order_are_noticed() -> None:
    def exchange(policy: OpenVLAPolicy) -> None:
        weight = policy.model.towers[0].blocks[0].attn["qkv"].weight.data
        query, key, value = weight.chunk(3)
        weight.copy_(torch.cat([key, query, value]))

    with pytest.raises(AssertionError):
        check_towers("fused", _load(exchange))


def test_a_key_missing_from_the_map_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "projector.fc3.weight"
    monkeypatch.setattr(
        checkpoint_module, "entries", lambda model: {k: v for k, v in entries(model).items() if k != name}
    )
    with pytest.raises(CheckpointError, match=name):
        _load()


def test_a_projector_without_its_activation_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = _load()
    monkeypatch.setattr(nn.functional, "gelu", lambda hidden: hidden)
    with pytest.raises(AssertionError):
        check_projector("fused", policy)


@pytest.mark.parametrize("filter_name", ["INTER_CUBIC", "INTER_AREA", "INTER_LINEAR"])
def test_another_resampling_is_noticed(filter_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def resize(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return torch.from_numpy(
            cv2.resize(np.ascontiguousarray(image.numpy()), (width, height), interpolation=getattr(cv2, filter_name))
        )

    monkeypatch.setattr(processor_module, "resize", resize)
    with pytest.raises(AssertionError):
        check_pixels("fused", _load())


@pytest.mark.parametrize("checkpoint", DATA_SETS)
def test_another_resize_strategy_is_noticed(checkpoint: str) -> None:
    policy = load(DATA / checkpoint, DATA_SETS[checkpoint][0])
    for strategy in {"resize-naive", "letterbox", "resize-crop"} - {policy.processor.strategy}:
        policy.processor = dataclasses.replace(policy.processor, strategy=strategy)
        with pytest.raises(AssertionError):
            check_pixels(checkpoint, policy)


def test_a_letterbox_filled_with_another_colour_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load(DATA / "single", DATA_SETS["single"][0])
    letterbox = ImageProcessor._letterbox
    black = dataclasses.replace(policy.processor, means=((0.0, 0.0, 0.0),))
    monkeypatch.setattr(ImageProcessor, "_letterbox", lambda _, image: letterbox(black, image))
    with pytest.raises(AssertionError):
        check_pixels("single", policy)


@pytest.mark.parametrize(
    "crop",
    [
        lambda square, area: square,
        lambda square, area: center_crop(square, area * area),  # 90 % of each side
        lambda square, area: torch.from_numpy(cv2.resize(square.numpy()[6:218, 6:218], (224, 224))),
    ],
    ids=["none", "of the sides", "other corners"],
)
def test_another_centre_crop_is_noticed(
    crop: Callable[[torch.Tensor, float], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor_module, "center_crop", crop)
    with pytest.raises(AssertionError):
        check_center_crop("square_224")


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_bin_off_by_one_is_noticed(shift: int) -> None:
    policy = _load()
    policy.codec = dataclasses.replace(policy.codec, vocab_size=policy.codec.vocab_size + shift)
    with pytest.raises(AssertionError):
        check_actions("fused", policy, KEY)


def test_a_moved_bin_edge_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = _load()
    monkeypatch.setattr(ActionCodec, "centers", property(lambda self: np.linspace(-1, 1, self.n_bins - 1)))
    with pytest.raises(AssertionError):
        check_actions("fused", policy, KEY)


def test_an_ignored_mask_is_noticed() -> None:
    policy = _load()
    policy.bounds = dataclasses.replace(policy.bounds, mask=np.ones(7, dtype=bool))
    with pytest.raises(AssertionError):
        check_actions("fused", policy, KEY)


def test_a_prompt_in_upper_case_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = _load()
    monkeypatch.setattr(
        processor_module,
        "format_prompt",
        lambda instruction, _history="": f"In: What action should the robot take to {instruction}?\nOut:",
    )
    with pytest.raises(AssertionError):
        check_prompts("fused", policy)


def test_a_changed_tensor_in_one_shard_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "fused"
    shutil.copytree(DATA / "fused", folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shard = folder / index["weight_map"]["projector.fc2.weight"]
    data = bytearray(shard.read_bytes())
    size = int.from_bytes(data[:8], "little")
    start, stop = json.loads(data[8 : 8 + size])["projector.fc2.weight"]["data_offsets"]
    data[8 + size + start : 8 + size + stop] = bytes(stop - start)
    shard.write_bytes(data)
    with pytest.raises(AssertionError):
        check_logits("fused", load(folder, KEY))

"""A checkpoint that sees several images: their visual tokens follow each other, as in OpenVLA-OFT."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import random_model, tiny_config, write_checkpoint

from flashvla_ros.bench.baselines import PlainPolicy
from flashvla_ros.core.errors import CheckpointError, ObservationError, SettingsError
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import CameraSettings, ModelSettings, PruningSettings, Settings
from flashvla_ros.core.types import Observation
from flashvla_ros.view.overlay import token_masks
from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy
from flashvla_ros.vla.config import OpenVLAConfig, model_size
from flashvla_ros.vla.loading import load_policy

NONE = PruningSettings(method="none")
NAMES = ("front", "wrist", "left")


@pytest.fixture(scope="module", params=[2, 3])
def folder(request, tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("cameras"), tiny_config(num_images_in_input=request.param))


def load(folder: Path, engine: str = "static") -> OpenVLAPolicy:
    return OpenVLAPolicy.load(ModelSettings(checkpoint=str(folder), device="cpu", engine=engine))


def observation(cameras: int, seed: int = 0, stamp_s: float = 1.0) -> Observation:
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (60, 80, 3), dtype=np.uint8) for name in NAMES[:cameras]}
    return Observation(images, "open the drawer", stamp_s)


def test_visual_tokens_of_the_cameras_follow_each_other(folder):
    policy = load(folder)
    images = list(observation(policy.cameras).images.values())
    with torch.inference_mode():
        together = policy.model.visual_tokens(policy.processor(*images))
        pixels = torch.cat([policy.processor(image) for image in images])
        one = random_model(tiny_config())
        apart = torch.cat([one.visual_tokens(pixel[None]) for pixel in pixels], dim=1)
    assert together.shape == (1, policy.visual_tokens, 32) and policy.visual_tokens == 16 * policy.cameras
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_dense_decoding_is_that_of_the_plain_model_and_every_camera_counts(folder):
    policy = load(folder)
    seen = observation(policy.cameras)
    tokens = policy.infer(Request(seen, NONE)).tokens
    assert PlainPolicy(policy).check(seen, tokens, "dense")
    for name in seen.images:  # one image may happen to give the same few tokens as another
        others = [observation(policy.cameras, seed).images[name] for seed in range(1, 7)]
        changed = [dataclasses.replace(seen, images={**seen.images, name: other}) for other in others]
        assert any(not np.array_equal(policy.infer(Request(one, NONE)).tokens, tokens) for one in changed), name


@pytest.mark.parametrize("method", ["ics", "ics_values", "fastv", "divprune", "dart", "temporal"])
def test_engines_agree_and_pruning_chooses_among_all_cameras(folder, method):
    eager, static = load(folder, "eager"), load(folder)
    pruning = PruningSettings(method=method, keep_ratio=0.5)
    before = None
    for step in range(3):
        seen = observation(static.cameras, seed=step, stamp_s=step / 10)
        expected = eager.infer(Request(seen, pruning, before))
        result = static.infer(Request(seen, pruning, before))
        assert np.array_equal(result.tokens, expected.tokens) and np.array_equal(result.kept, expected.kept)
        before = expected
    assert len(before.kept) == static.visual_tokens // 2 and before.kept[-1] >= 16
    masks = token_masks(before.kept, before.visual_tokens, static.cameras)
    assert sum(int(mask.sum()) for mask in masks) == len(before.kept)


def test_warming_up_and_counting_take_every_camera(folder):
    policy = load(folder)
    policy.warm_up(PruningSettings())
    size = model_size(policy.model.config)
    one = model_size(tiny_config())
    assert size.visual_tokens == policy.visual_tokens
    assert size.vision_flops() == policy.cameras * one.vision_flops()


def test_another_number_of_cameras_is_refused(folder):
    policy = load(folder)
    with pytest.raises(ObservationError, match=f"sees {policy.cameras} cameras, got 1: front"):
        policy.infer(Request(observation(1), NONE))
    model = ModelSettings(checkpoint=str(folder), device="cpu")
    with pytest.raises(SettingsError, match=f"has 0 entries .*this checkpoint sees {policy.cameras} cameras"):
        load_policy(Settings(model=model))
    names = Settings(model=model, camera=CameraSettings(NAMES[: policy.cameras]))
    assert load_policy(names).policy.action_size == policy.action_size


def test_the_number_comes_from_the_checkpoint():
    config = tiny_config(num_images_in_input=2)
    assert OpenVLAConfig.from_dict(config.to_dict()).visual_tokens == 32
    assert OpenVLAConfig.from_dict({**config.to_dict(), "num_images_in_input": None}).visual_tokens == 16
    with pytest.raises(CheckpointError, match="num_images_in_input must be at least 1, got 0"):
        tiny_config(num_images_in_input=0)

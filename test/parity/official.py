"""The kept inputs and outputs of OpenVLA's official code (see README.md beside this file), and the checks against them.

The tests run each check on the package as it is, and again on the package with something broken.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import ModelSettings, PruningSettings
from flashvla_ros.core.types import ImageArray, Observation
from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy
from flashvla_ros.vla.decoding import prefill
from flashvla_ros.vla.processor import ImageProcessor
from flashvla_ros.vla.query import Query

DATA = Path(__file__).parent / "data"
DATA_SETS = {
    "fused": ("bridge_orig", "four_dof_without_mask", "taco_play"),
    "single": ("libero_spatial_no_noops",),
}
UNPRUNED = PruningSettings(method="none")
FIRST_ROW = 31720  # of the vocabulary, in the kept logits


class Case(NamedTuple):
    """One image and instruction, with what the official code computed from them."""

    name: str
    image: ImageArray
    instruction: str
    expected: dict[str, Tensor]

    def actions(self) -> dict[str, Tensor]:
        """Un-normalised actions by data set."""
        return {key.removeprefix("action."): value for key, value in self.expected.items() if key.startswith("action.")}


@functools.cache
def cases(checkpoint: str) -> tuple[Case, ...]:
    """Return the cases of one checkpoint."""
    tensors = load_file(DATA / f"{checkpoint}.expected.safetensors")
    found = []
    for entry in json.loads((DATA / "cases.json").read_text())["cases"]:
        name = entry["image"].removesuffix(".png")
        expected = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
        found.append(Case(name, read_image(name), entry["instruction"], expected))
    return tuple(found)


def read_image(name: str) -> ImageArray:
    """Read one of the images as RGB."""
    image = cv2.imread(str(DATA / "images" / f"{name}.png"), cv2.IMREAD_COLOR)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest expected value."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())


def assert_close(actual: Tensor, expected: Tensor, what: str, tolerance: float = 1e-4) -> None:
    """Fail where a value is off by more than `tolerance` of the largest one."""
    assert relative_error(actual, expected) <= tolerance, what


def check_pixels(checkpoint: str, policy: OpenVLAPolicy) -> None:
    """The image processor's pixel values are the official ones."""
    for case in cases(checkpoint):
        torch.testing.assert_close(policy.processor(case.image)[0], case.expected["pixel_values"], rtol=0, atol=1e-6)


def check_center_crop(name: str) -> None:
    """An image of the published size, cropped as in the official LIBERO evaluation, is the official one."""
    half = ((0.5, 0.5, 0.5),)
    square = ImageProcessor(224, "resize-naive", half, half, crop_area=0.9).to_square(read_image(name))
    expected = load_file(DATA / "center_crop.expected.safetensors")[name]
    np.testing.assert_array_equal(square.numpy(), expected.numpy())


def check_prompts(checkpoint: str, policy: OpenVLAPolicy) -> None:
    """The prompt's ids are the official ones."""
    for case in cases(checkpoint):
        assert policy.prompts(case.instruction) == case.expected["input_ids"].tolist(), case.name


@torch.inference_mode()
def check_towers(checkpoint: str, policy: OpenVLAPolicy) -> None:
    """From the official pixel values come the official features of each tower."""
    for case in cases(checkpoint):
        images = case.expected["pixel_values"][None].split(3, dim=1)
        for index, (tower, image) in enumerate(zip(policy.model.towers, images, strict=True)):
            assert_close(tower(image)[0], case.expected[f"tower_{index}"], f"tower {index}, {case.name}")


@torch.inference_mode()
def check_projector(checkpoint: str, policy: OpenVLAPolicy) -> None:
    """From the official features come the official visual tokens."""
    for case in cases(checkpoint):
        towers = [case.expected[f"tower_{index}"] for index in range(len(policy.model.towers))]
        visual = policy.model.projector(torch.cat(towers, dim=1)[None])[0]
        assert_close(visual, case.expected["projector"], case.name)


@torch.inference_mode()
def check_logits(checkpoint: str, policy: OpenVLAPolicy, tolerance: float = 1e-4) -> None:
    """From image and instruction come the official logits over the whole vocabulary."""
    for case in cases(checkpoint):
        visual = policy.model.visual_tokens(policy.processor(case.image))
        query = Query(policy.prompts(case.instruction), UNPRUNED)
        logits = prefill(policy.model, visual, query, 1).logits[0, 0]
        kept = case.expected["logits"]
        whole = torch.zeros_like(logits)
        whole[FIRST_ROW : FIRST_ROW + len(kept)] = kept
        assert_close(logits, whole, case.name, tolerance)


def check_actions(checkpoint: str, policy: OpenVLAPolicy, key: str) -> None:
    """From image and instruction come the official tokens, and from these the official action for one data set."""
    for case in cases(checkpoint):
        result = policy.infer(Request(Observation({"camera": case.image}, case.instruction, stamp_s=0.0), UNPRUNED))
        expected = case.actions()[key].numpy()
        assert result.tokens.tolist() == case.expected["tokens"][: len(expected)].tolist(), case.name
        np.testing.assert_allclose(result.action[0], expected, rtol=1e-12, atol=1e-12, err_msg=case.name)


def load(folder: Path, unnorm_key: str) -> OpenVLAPolicy:
    """Load a checkpoint in float32 on the CPU."""
    settings = ModelSettings(checkpoint=str(folder), unnorm_key=unnorm_key, device="cpu", dtype="float32")
    return OpenVLAPolicy.load(settings)

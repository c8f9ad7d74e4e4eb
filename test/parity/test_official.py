"""Every stage, from the camera image to the action, gives what OpenVLA's official code gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from official import (
    DATA,
    DATA_SETS,
    cases,
    check_actions,
    check_center_crop,
    check_logits,
    check_pixels,
    check_projector,
    check_prompts,
    check_towers,
    load,
    read_image,
)
from safetensors.torch import load_file
from tokenizers import Tokenizer

from flashvla_ros.core.settings import ModelSettings
from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy
from flashvla_ros.vla.center_crop import center_crop
from flashvla_ros.vla.processor import ImageProcessor
from flashvla_ros.vla.tokenizer import PAD, load_tokenizer

SIDE_FILES = json.loads((DATA / "tokenizer" / "side_files.json").read_text())
EVERY_KEY = [(checkpoint, key) for checkpoint, keys in DATA_SETS.items() for key in keys]


@pytest.fixture(scope="module", params=DATA_SETS)
def loaded(request: pytest.FixtureRequest) -> tuple[str, OpenVLAPolicy]:
    """Each checkpoint's name and policy."""
    return request.param, load(DATA / request.param, DATA_SETS[request.param][0])


@pytest.mark.parametrize(
    "check",
    [check_pixels, check_prompts, check_towers, check_projector, check_logits],
    ids=lambda check: check.__name__,
)
def test_stage(check, loaded) -> None:  # type: ignore[no-untyped-def]
    check(*loaded)


@pytest.mark.parametrize(("checkpoint", "key"), EVERY_KEY)
def test_tokens_and_actions(checkpoint: str, key: str) -> None:
    check_actions(checkpoint, load(DATA / checkpoint, key), key)


def test_a_masked_dimension_and_a_token_outside_the_range_are_covered() -> None:
    """The data would not notice a wrong mask or a wrong clipping otherwise."""
    tokens = torch.cat([case.expected["tokens"] for case in cases("fused")])
    assert (tokens > 31999).any()
    assert (tokens >= 31744).sum() > 20
    tokens = torch.cat([tokens, *(case.expected["tokens"] for case in cases("single"))])
    assert (tokens < 31744).any()
    masks = json.loads((DATA / "fused/config.json").read_text())["norm_stats"]["bridge_orig"]["action"]["mask"]
    assert not all(masks)


@pytest.mark.parametrize("strategy", ["resize-naive", "letterbox", "resize-crop"])
def test_resizing_for_both_towers(strategy: str) -> None:
    settings = json.loads((DATA / "processors" / strategy / "preprocessor_config.json").read_text())
    means, stds = ([tuple(triple) for triple in settings[name]] for name in ("means", "stds"))
    process = ImageProcessor(42, strategy, tuple(means), tuple(stds))
    expected = load_file(DATA / "processors.expected.safetensors")
    names = [key.split("/")[1] for key in expected if key.startswith(f"{strategy}/")]
    assert len(names) == 4
    for name in names:
        torch.testing.assert_close(process(read_image(name))[0], expected[f"{strategy}/{name}"], rtol=0, atol=1e-6)


def test_resizing_to_the_published_size() -> None:
    half = ((0.5, 0.5, 0.5),)
    square = ImageProcessor(224, "resize-naive", half, half).to_square(read_image("camera_640x480"))
    expected = load_file(DATA / "processors.expected.safetensors")["naive-224/camera_640x480"]
    np.testing.assert_array_equal(square.permute(2, 0, 1).numpy(), expected.numpy())


@pytest.mark.parametrize("name", ["square_224", "camera_640x480"])
def test_the_centre_crop_of_the_libero_evaluation(name: str) -> None:
    check_center_crop(name)


def test_the_parameter_reaches_the_pixels() -> None:
    whole, cropped = (
        OpenVLAPolicy.load(ModelSettings(checkpoint=str(DATA / "single"), device="cpu", center_crop=area))
        for area in (1.0, 0.9)
    )
    image = read_image("square_224")
    square = center_crop(whole.processor.to_square(image), 0.9)
    assert torch.equal(cropped.processor.to_square(image), square)
    assert not torch.equal(cropped.processor(image), whole.processor(image))


@pytest.mark.parametrize("names", [("tokenizer.json",), ("tokenizer.model",), None], ids=["fast", "slow", "all"])
def test_each_form_of_the_tokenizer_gives_the_official_ids(names: tuple[str, ...] | None, tmp_path: Path) -> None:
    source = DATA / "tokenizer"
    for file in source.iterdir():
        if names is None or file.name in (*names, "tokenizer_config.json", "special_tokens_map.json"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = load_tokenizer(tmp_path)
    for entry in json.loads((source / "expected.json").read_text()):
        assert tokenizer.encode(entry["text"]).ids == entry["ids"]


@pytest.mark.parametrize("variant", SIDE_FILES["variants"], ids=lambda variant: variant["name"])
def test_files_beside_the_tokenizer_mean_what_they_mean_officially(variant: dict[str, Any], tmp_path: Path) -> None:
    for form in variant["forms"]:
        folder = tmp_path / form
        folder.mkdir()
        for name in (form, "special_tokens_map.json", "added_tokens.json"):
            shutil.copy(DATA / "tokenizer" / name, folder)
        for name, content in variant["files"].items():
            (folder / name).write_text(json.dumps(content))
        tokenizer = load_tokenizer(folder)
        assert [tokenizer.encode(text).ids for text in SIDE_FILES["texts"]] == variant["ids"], form


@pytest.mark.parametrize(
    "keep",
    [
        lambda tokenizer: tokenizer.enable_padding(length=64, pad_id=32000, pad_token=PAD),
        lambda tokenizer: tokenizer.enable_truncation(12),
    ],
    ids=["padding", "truncation"],
)
def test_what_tokenizer_json_keeps_of_its_last_use_changes_no_prompt(
    keep: Callable[[Tokenizer], None], tmp_path: Path
) -> None:
    """The official code pads and cuts by its own arguments alone, which ask for neither."""
    folder = Path(shutil.copytree(DATA / "fused", tmp_path / "used"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    keep(tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))
    check_prompts("fused", load(folder, DATA_SETS["fused"][0]))

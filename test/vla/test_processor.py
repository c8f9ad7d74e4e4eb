from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from checkpoints import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvla_ros.core.errors import CheckpointError, ObservationError
from flashvla_ros.vla.center_crop import center_crop
from flashvla_ros.vla.processor import ImageProcessor, PromptEncoder, format_prompt
from flashvla_ros.vla.resample import resize
from flashvla_ros.vla.tokenizer import build_tokenizer

pil = pytest.importorskip("PIL.Image")
SIDE = st.integers(1, 90)
MEANS = (0.485, 0.456, 0.406), (0.5, 0.5, 0.5)
STDS = (0.229, 0.224, 0.225), (0.5, 0.5, 0.5)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pillow(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Rows, then columns, the order of every release up to 12."""
    rows = pil.fromarray(image).resize((width, image.shape[0]), pil.Resampling.BICUBIC)
    return np.asarray(rows.resize((width, height), pil.Resampling.BICUBIC))


@settings(max_examples=60, deadline=None)
@given(SIDE, SIDE, SIDE, SIDE, st.integers(0, 99))
def test_resize_equals_pillow_to_the_last_bit(height, width, new_height, new_width, seed):
    image = noise(height, width, seed)
    assert np.array_equal(resize(torch.from_numpy(image), new_height, new_width), pillow(image, new_height, new_width))


def test_camera_images_equal_pillow_in_one_call():
    image = noise(480, 640)
    whole = pil.fromarray(image).resize((224, 224), pil.Resampling.BICUBIC)
    assert np.array_equal(resize(torch.from_numpy(image), 224, 224), np.asarray(whole))


def test_each_tower_gets_its_own_statistics():
    image = noise(56, 56)
    pixels = ImageProcessor(56, "resize-naive", MEANS, STDS)(image)
    assert pixels.shape == (1, 6, 56, 56)
    scaled = image.transpose(2, 0, 1) / 255
    for tower in range(2):
        mean, std = (np.array(values[tower])[:, None, None] for values in (MEANS, STDS))
        np.testing.assert_allclose(pixels[0, 3 * tower : 3 * tower + 3], (scaled - mean) / std, atol=1e-6)


def test_naive_loses_the_aspect_ratio():
    image = noise(30, 60)
    square = ImageProcessor(20, "resize-naive", MEANS, STDS).to_square(image)
    assert np.array_equal(square, pillow(image, 20, 20))


def test_crop_cuts_the_long_side():
    image = noise(30, 60)
    square = ImageProcessor(20, "resize-crop", MEANS, STDS).to_square(image)
    assert np.array_equal(square, pillow(image, 20, 40)[:, 10:30])


def test_letterbox_adds_borders_in_the_mean_colour():
    image = np.zeros((20, 40, 3), dtype=np.uint8)
    square = ImageProcessor(40, "letterbox", MEANS, STDS).to_square(image)
    assert square.shape == (40, 40, 3)
    assert (square[:10] == 127).all()
    assert (square[10:30] == 0).all()
    assert (square[30:] == 127).all()


def test_letterbox_of_an_odd_difference_is_still_square():
    assert ImageProcessor(20, "letterbox", MEANS, STDS).to_square(noise(33, 20)).shape == (20, 20, 3)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.floats(0.1, 1.0), st.integers(0, 99))
def test_a_centre_crop_is_linear_interpolation_from_corner_to_corner(size, area, seed):
    image = noise(size, size, seed)
    margin = (1 - np.sqrt(area)) / 2 * (size - 1)
    positions = np.linspace(margin, size - 1 - margin, size)
    pixels = np.arange(size)
    rows = np.apply_along_axis(lambda line: np.interp(positions, pixels, line), 1, image)
    expected = np.apply_along_axis(lambda line: np.interp(positions, pixels, line), 0, rows)
    assert np.abs(center_crop(torch.from_numpy(image), area).numpy() - expected).max() <= 1.01  # grey levels


@pytest.mark.parametrize("strategy", ["resize-naive", "letterbox", "resize-crop"])
def test_the_crop_comes_after_resizing(strategy):
    image = noise(30, 60)
    whole = ImageProcessor(20, strategy, MEANS, STDS)
    cropped = dataclasses.replace(whole, crop_area=0.81)
    assert torch.equal(cropped.to_square(image), center_crop(whole.to_square(image), 0.81))


@pytest.mark.parametrize("view", [lambda image: image[:, ::-1], lambda image: image[::2], np.array])
def test_any_view_of_an_image_is_taken(view):
    image = view(noise(112, 56))
    image.flags.writeable = False
    processor = ImageProcessor(56, "resize-naive", MEANS, STDS)
    assert torch.equal(processor(image), processor(image.copy()))


def test_processor_survives_its_file(tmp_path):
    processor = ImageProcessor.from_config(tiny_config(image_resize_strategy="letterbox"))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor.to_dict()))
    assert ImageProcessor.from_folder(tmp_path, tiny_config()) == processor


def test_without_a_file_the_towers_decide(tmp_path):
    processor = ImageProcessor.from_folder(tmp_path, tiny_config())
    assert processor == ImageProcessor(56, "resize-naive", MEANS, STDS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_sizes": [[3, 224, 224]] * 2}, "input_sizes must be"),
        ({"interpolations": ["bilinear", "bicubic"]}, "interpolations must be bicubic"),
        ({"image_resize_strategy": "squeeze"}, "image_resize_strategy must be one of"),
        ({"means": [[0.5, 0.5, 0.5]]}, "means must list three numbers for each of 2 towers"),
        ({"means": 5}, "means must list three numbers for each of 2 towers"),
        ({"means": ["abc", "def"]}, "means must list three numbers for each of 2 towers"),
        ({"means": [[0.5, 0.5, None]] * 2}, "means must list three numbers for each of 2 towers"),
        ({"means": [[0.5, 0.5, float("nan")]] * 2}, "means must list three numbers for each of 2 towers"),
        ({"stds": [[0.5, 0.5, 0.0]] * 2}, "stds must list three numbers above 0 for each of 2 towers"),
        ({"stds": [[0.5, 0.5, 10**400]] * 2}, "stds must list three numbers above 0 for each of 2 towers"),
        ({"input_sizes": 56}, "input_sizes must be"),
        ({"tvf_resize_params": 5}, "tvf_resize_params does not fit"),
        ({"tvf_resize_params": ["x"]}, "tvf_resize_params does not fit"),
        ({"tvf_normalize_params": {"mean": 1}}, "tvf_normalize_params does not fit"),
        ({"tvf_normalize_params": [{"mean": ["x", "y", "z"]}]}, "tvf_normalize_params.mean does not fit"),
        ({"tvf_normalize_params": [{"std": [1.0, 2.0]}]}, "tvf_normalize_params.std does not fit"),
    ],
)
def test_processor_file_that_does_not_fit_is_refused(change, message, tmp_path):
    data = {**ImageProcessor.from_config(tiny_config()).to_dict(), **change}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=message):
        ImageProcessor.from_folder(tmp_path, tiny_config())


@pytest.mark.parametrize("strategy", ["letterbox", "resize-crop"])
@pytest.mark.parametrize("shape", [(1, 1700, 3), (1700, 100, 3)])
def test_a_strip_whose_square_would_take_gigabytes_is_refused(strategy, shape):
    image = np.zeros(shape, dtype=np.uint8)
    with pytest.raises(ObservationError, match=f"{shape[1]} x {shape[0]} pixels is over 16 times as long as"):
        ImageProcessor(56, strategy, MEANS, STDS).to_square(image)
    assert ImageProcessor(56, "resize-naive", MEANS, STDS).to_square(image).shape == (56, 56, 3)


PROMPTS = PromptEncoder(build_tokenizer([format_prompt("open the drawer")], 1024), max_tokens=60)


def test_prompt_is_openvlas():
    assert format_prompt("Open the Drawer") == "In: What action should the robot take to open the drawer?\nOut:"


def test_prompt_starts_with_bos_and_ends_with_the_empty_token():
    ids = PROMPTS("open the drawer")
    assert ids[0] == 1
    assert ids[-1] == PROMPTS.tokenizer.token_to_id("▁")
    assert ids.count(1) == 1


def test_instructions_in_any_case_are_one():
    assert PROMPTS("Open The Drawer") == PROMPTS("open the drawer")


@pytest.mark.parametrize("instruction", ["", "  \n"])
def test_empty_instruction_is_refused(instruction):
    with pytest.raises(ObservationError, match="instruction is empty"):
        PROMPTS(instruction)


def test_an_instruction_of_bytes_that_were_no_text_is_refused():
    """As Python reads an argument or JSON with them; the tokenizers library says that it must be a str."""
    with pytest.raises(ObservationError, match="no Unicode text: send it as UTF-8"):
        PROMPTS("open the \udcff drawer")


def test_endless_instruction_is_refused():
    with pytest.raises(ObservationError, match=r"of 10000 characters makes a prompt of .* takes 60: shorten it"):
        PROMPTS("open the ju" * 909 + "x")


def test_foreign_tokenizer_is_refused():
    from tokenizers import Tokenizer, models

    with pytest.raises(CheckpointError, match="has no token <s> and no ▁"):
        PromptEncoder(Tokenizer(models.BPE({"a": 0}, [])), 60)


def test_visual_tokens_that_leave_no_room_for_a_prompt_are_refused():
    with pytest.raises(CheckpointError, match="leave room for a prompt of -100 tokens"):
        PromptEncoder(PROMPTS.tokenizer, max_tokens=-100)

"""From a camera image and an instruction to the model's inputs, as OpenVLA's own processor makes them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from flashvla_ros.core.errors import CheckpointError, ObservationError
from flashvla_ros.core.types import Box, FloatArray, ImageArray
from flashvla_ros.vla.center_crop import center_crop
from flashvla_ros.vla.config import RESIZE_STRATEGIES, OpenVLAConfig, read_json
from flashvla_ros.vla.resample import resize
from flashvla_ros.vla.shapes import DINOV2, SIGLIP
from flashvla_ros.vla.tokenizer import BOS, SPACE, load_tokenizer

Triple = tuple[float, float, float]
_SHORTEST = 16  # tokens of a prompt whose instruction is one word

# What the towers were pre-trained with: (mean, standard deviation) of each channel.
_STATISTICS: dict[str, tuple[Triple, Triple]] = {
    DINOV2: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    SIGLIP: ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
_MOST_RATIO = 16  # of an image's longer side to the shorter one


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """Resizes an RGB image to a square and normalises it for each tower.

    Attributes:
        image_size: Side of the square, in pixels.
        strategy: resize-naive (the aspect ratio is lost), letterbox (borders are added), resize-crop (borders are cut).
        means: Mean of each channel, on a scale of 1, for each tower.
        stds: Standard deviation of each channel, for each tower.
        crop_area: Share of the square's area around its centre that the towers see, scaled back up; 1 is all of it.
    """

    image_size: int
    strategy: str
    means: tuple[Triple, ...]
    stds: tuple[Triple, ...]
    crop_area: float = 1.0

    @classmethod
    def from_config(cls, config: OpenVLAConfig) -> ImageProcessor:
        """Return the processor that the towers' pre-training implies."""
        statistics = [_STATISTICS[tower.model_type] for tower in config.towers]
        means, stds = zip(*statistics, strict=True)
        return cls(config.towers[0].image_size, config.image_resize_strategy, means, stds)

    @classmethod
    def from_folder(cls, folder: Path, config: OpenVLAConfig) -> ImageProcessor:
        """Read preprocessor_config.json where the checkpoint has one; it goes before what `config` implies."""
        path = folder / "preprocessor_config.json"
        implied = cls.from_config(config)
        if not path.is_file():
            return implied
        data = read_json(path)
        size = [3, implied.image_size, implied.image_size]
        for name, value in (("input_sizes", size), ("interpolations", "bicubic")):
            given = data.get(name) or []
            if not isinstance(given, list) or any(found != value for found in given):
                raise CheckpointError(
                    f"{path}: {name} must be {value} for each tower, got {data[name]}: "
                    f"use the preprocessor_config.json of this checkpoint"
                )
        strategy = data.get("image_resize_strategy", implied.strategy)
        if strategy not in RESIZE_STRATEGIES:
            raise CheckpointError(f"{path}: image_resize_strategy must be one of {', '.join(RESIZE_STRATEGIES)}")
        statistics: dict[str, Any] = {}
        for name, least in (("means", -math.inf), ("stds", 0.0)):
            values = _numbers(data.get(name) or getattr(implied, name))
            if values.shape != (len(config.towers), 3) or not (np.isfinite(values) & (values > least)).all():
                above = " above 0" if name == "stds" else ""
                raise CheckpointError(
                    f"{path}: {name} must list three numbers{above} for each of {len(config.towers)} towers: "
                    f"use the preprocessor_config.json of this checkpoint"
                )
            statistics[name] = tuple(map(tuple, values.tolist()))
        processor = cls(implied.image_size, strategy, **statistics)
        processor._check_transform(path, data)
        return processor

    def _check_transform(self, path: Path, data: Mapping[str, Any]) -> None:
        """Refuse ``tvf_*`` fields that say otherwise: the official code writes them of the others, and follows them."""
        side = self.image_size
        size = [side, side] if self.strategy == "resize-naive" else side
        letterbox = self.strategy == "letterbox"
        resized, normalized = (data.get(name) or [] for name in ("tvf_resize_params", "tvf_normalize_params"))
        wrong = ["tvf_do_letterbox"] if data.get("tvf_do_letterbox", letterbox) != letterbox else []
        if not _is_objects(resized) or any(entry.get("size", size) != size for entry in resized):
            wrong.append("tvf_resize_params")
        if not _is_objects(normalized):
            wrong.append("tvf_normalize_params")
            normalized = []
        for entry, mean, std in zip(normalized, self.means, self.stds, strict=False):
            for name, values in (("mean", mean), ("std", std)):
                found = _numbers(entry.get(name, values))
                if found.shape != (3,) or not np.allclose(found, values, atol=1e-6):
                    wrong.append(f"tvf_normalize_params.{name}")
        if wrong:
            raise CheckpointError(
                f"{path}: {wrong[0]} does not fit the fields without tvf_, and the official code follows it: "
                f"set image_resize_strategy, means and stds to what the tvf_ fields say"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a preprocessor_config.json."""
        towers = len(self.means)
        return {
            "image_processor_type": "PrismaticImageProcessor",
            "processor_class": "PrismaticProcessor",
            "use_fused_vision_backbone": towers == 2,
            "image_resize_strategy": self.strategy,
            "input_sizes": [[3, self.image_size, self.image_size]] * towers,
            "interpolations": ["bicubic"] * towers,
            "means": self.means,
            "stds": self.stds,
        }

    def __call__(self, *images: ImageArray, device: torch.device | str = "cpu") -> Tensor:
        """Turn RGB images, uint8 [H, W, 3], into float32 pixel values [C, 3 per tower, S, S]."""
        return self.normalize(*(self.to_square(image, device, slot) for slot, image in enumerate(images)))

    def normalize(self, *squares: Tensor) -> Tensor:
        """Turn what :meth:`to_square` gives, once or more, into pixel values [C, 3 per tower, S, S]."""
        pictures = torch.stack(squares)
        mean, std = _statistics_on(self.means, self.stds, pictures.device)
        return ((pictures.permute(0, 3, 1, 2).float().div_(255)[:, None] - mean) / std).flatten(1, 2)

    def to_square(self, image: ImageArray, device: torch.device | str = "cpu", slot: int = 0) -> Tensor:
        """Resize and crop to uint8 [S, S, 3], the picture that the towers see before it is normalised.

        Images of one step take different slots: see :func:`upload`.
        """
        square = self._resized(image, device, slot)
        return square if self.crop_area == 1.0 else center_crop(square, self.crop_area)

    def visible_box(self, height: int, width: int) -> Box:
        """Return what :meth:`to_square` shows of an image of this size; it reaches beyond where borders are added."""
        left = top = 0.0
        right, bottom = float(width), float(height)
        if self.strategy != "resize-naive":
            border_x, border_y = self._borders(height, width)
            scaled_width, scaled_height = self._scaled(height + 2 * border_y, width + 2 * border_x)
            across, down = (width + 2 * border_x) / scaled_width, (height + 2 * border_y) / scaled_height
            left = round((scaled_width - self.image_size) / 2) * across - border_x
            top = round((scaled_height - self.image_size) / 2) * down - border_y
            right, bottom = left + self.image_size * across, top + self.image_size * down
        cut = (1.0 - math.sqrt(self.crop_area)) / 2.0
        cut_x, cut_y = cut * (right - left), cut * (bottom - top)
        return left + cut_x, top + cut_y, right - cut_x, bottom - cut_y

    def _borders(self, height: int, width: int) -> tuple[int, int]:
        """Pixels that the letterbox adds on the left and right each, and above and below each."""
        if self.strategy != "letterbox":
            return 0, 0
        side = max(height, width)
        return (side - width) // 2, (side - height) // 2

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        """Width and height of an image whose shorter side is that of the square."""
        short = min(height, width)
        return self.image_size * width // short, self.image_size * height // short

    def _resized(self, image: ImageArray, device: torch.device | str, slot: int) -> Tensor:
        size = self.image_size
        if self.strategy != "resize-naive" and max(image.shape[:2]) > _MOST_RATIO * min(image.shape[:2]):
            raise ObservationError(
                f"an image of {image.shape[1]} x {image.shape[0]} pixels is over {_MOST_RATIO} times as long as it is "
                f"wide: {self.strategy} would show next to nothing of it, and take gigabytes"
            )
        if self.strategy == "letterbox":
            image = self._letterbox(image)
        tensor = upload(image, torch.device(device), slot)
        if self.strategy == "resize-naive":
            return resize(tensor, size, size)
        width, height = self._scaled(*image.shape[:2])
        tensor = resize(tensor, height, width)
        top, left = round((tensor.shape[0] - size) / 2), round((tensor.shape[1] - size) / 2)
        return tensor[top : top + size, left : left + size]

    def _letterbox(self, image: ImageArray) -> ImageArray:
        """Add borders in the last tower's mean colour, equal on both sides: an odd difference leaves one pixel over."""
        left, top = self._borders(*image.shape[:2])
        fill = [int(mean * 255) for mean in self.means[-1]]
        padded = cv2.copyMakeBorder(image, top, top, left, left, cv2.BORDER_CONSTANT, value=fill)
        return padded.astype(np.uint8, copy=False)


@dataclasses.dataclass(frozen=True)
class PromptEncoder:
    """Turns an instruction into the ids of OpenVLA's prompt.

    Attributes:
        tokenizer: Of the checkpoint.
        max_tokens: Longest prompt that leaves room for visual and action tokens.
    """

    tokenizer: Tokenizer
    max_tokens: int

    def __post_init__(self) -> None:
        if absent := [token for token in (BOS, SPACE) if self.tokenizer.token_to_id(token) is None]:
            raise CheckpointError(f"the tokenizer has no token {' and no '.join(absent)}: it is not Llama's")
        if self.max_tokens < _SHORTEST:
            raise CheckpointError(
                f"visual and action tokens leave room for a prompt of {self.max_tokens} tokens in the checkpoint's "
                f"longest sequence: set model.images and model.chunk_size to those of its training"
            )

    @classmethod
    def from_folder(cls, folder: Path, config: OpenVLAConfig, rows: int) -> PromptEncoder:
        """Read the folder's tokenizer, for sequences of `rows` more besides visual tokens and prompt.

        Raises:
            CheckpointError: It is not Llama's, has tokens that the network has not, or leaves no room for a prompt.
        """
        tokenizer, llama = load_tokenizer(folder), config.llama()
        if (last := max(tokenizer.get_vocab().values(), default=-1)) >= llama.vocab_size:
            raise CheckpointError(
                f"{folder}: its tokenizer has a token {last}, and the table of embeddings {llama.vocab_size} rows: "
                f"copy all the tokenizer's files from this checkpoint"
            )
        longest = min(config.llm_max_length, llama.max_position_embeddings)
        return cls(tokenizer, longest - config.visual_tokens - rows)

    def __call__(self, instruction: str, history: str = "") -> list[int]:
        """Return [BOS, prompt, empty token]; `history` is UniVLA's last latent action.

        Raises:
            ObservationError: The instruction is empty, too long or no Unicode text.
        """
        if not instruction.strip():
            raise ObservationError("the instruction is empty: send words that say what the robot should do")
        try:
            ids = self.tokenizer.encode(format_prompt(instruction, history)).ids
        except TypeError as error:  # half of a surrogate pair: what Python makes of bytes that are no UTF-8
            raise ObservationError(
                "the instruction has characters that are no Unicode text: send it as UTF-8"
            ) from error
        start, end = (cast(int, self.tokenizer.token_to_id(token)) for token in (BOS, SPACE))
        ids = ids if ids[0] == start else [start, *ids]
        ids = ids if ids[-1] == end else [*ids, end]
        if len(ids) > self.max_tokens:
            raise ObservationError(
                f"the instruction of {len(instruction)} characters makes a prompt of {len(ids)} tokens; "
                f"this checkpoint takes {self.max_tokens}: shorten it"
            )
        return ids


def upload(image: ImageArray, device: torch.device, slot: int = 0) -> Tensor:
    """Return an image as a tensor on `device`; a GPU fetches it from pinned memory while the host goes on.

    The pinned memory is used again by the next image of this shape and `slot`, so whoever asks for one waits for the
    device first, as every step of the policy ends by doing.
    """
    if device.type == "cuda":
        pinned = _pinned(image.shape, slot)
        np.copyto(pinned.numpy(), image)
        return pinned.to(device, non_blocking=True)
    # torch takes neither read-only arrays, as messages give them, nor negative strides
    return torch.from_numpy(image if image.flags.writeable and image.flags.c_contiguous else image.copy())


def _is_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _numbers(value: Any) -> FloatArray:
    """Return what a file lists as an array; an empty one where it is no list of numbers."""
    try:
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return np.empty(0)


@functools.lru_cache(maxsize=16)
def _pinned(shape: tuple[int, ...], slot: int) -> Tensor:  # noqa: ARG001 - keeps those of one step apart
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True)


@functools.lru_cache(maxsize=4)
def _statistics_on(means: tuple[Triple, ...], stds: tuple[Triple, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Means and deviations [towers, 3, 1, 1] on a device, sent there once."""
    mean, std = (torch.tensor(values, device=device)[..., None, None] for values in (means, stds))
    return mean, std


def format_prompt(instruction: str, history: str = "") -> str:
    """Return the prompt that OpenVLA was trained on, and UniVLA with its last latent action; in lower case."""
    told = f" History action {history}" if history else ""
    return f"In: What action should the robot take to {instruction.lower()}?{told}\nOut:"

"""Demonstrations on disk: one file an episode, so that collection can stop, go on and grow at any point.

A data set is a folder with ``meta.json`` and ``episode-<task>-<number>.npz`` files. Each file holds, for its frames,
what :class:`Frames` names; ``meta.json`` holds the instructions that ``instruction`` indexes and how the data was made.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.files import write_text

META = "meta.json"
DRIVEN = "driven"  # in the name of an episode in which a policy drove the robot
AUXILIARY = ("hand_x", "hand_y", "hand_z", "gripper", "object_x", "object_y", "object_z")


class DatasetError(FlashVLAError):
    """A data set is missing, incomplete, or was made in another way than asked for."""


@dataclasses.dataclass(frozen=True)
class Frames:
    """F frames of demonstrations.

    Attributes:
        images: [M, H, W, 3] RGB uint8.
        image: [F] int32, which of them a frame shows; where the data set does not say, each frame has its own.
        actions: [F, D] float32, normalised: the expert's motion and gripper at that frame, without noise; or [F, T, D],
            what it would do in the next T steps if nothing disturbed them.
        instruction: [F] uint8, index into the instructions of the data set.
        auxiliary: [F, A] float32, see :data:`AUXILIARY`; positions in m, gripper's opening in [0, 1]; NaN: not there.
        seen: [F, 2] float32, where the image shows what the instruction names: row and column as shares of its sides;
            NaN where the data set does not say.
        done: [F] bool, the instruction in force is already accomplished.
        episode: [F] int64, see :func:`episode_id`.
        weight: [F] float32, how often a frame is drawn in proportion to others; 1 where the data set has none.
    """

    images: NDArray[np.uint8]
    image: NDArray[np.int32]
    actions: NDArray[np.float32]
    instruction: NDArray[np.uint8]
    auxiliary: NDArray[np.float32]
    seen: NDArray[np.float32]
    done: NDArray[np.bool_]
    episode: NDArray[np.int64]
    weight: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.image)


def episode_path(folder: Path, task: str, number: int) -> Path:
    """Return where an episode lies."""
    return folder / f"episode-{task}-{number:05d}.npz"


def episode_id(path: Path) -> int:
    """Return a number that an episode keeps as the data set grows, and with it whether it is held out."""
    return zlib.crc32(path.stem.encode())


def write_episode(path: Path, **arrays: NDArray[Any]) -> None:
    """Write an episode so that a file of that name is always complete."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    partial.replace(path)


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Create the folder with its ``meta.json``, or check that an existing one was made in the same way."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / META
    if path.exists():
        present = read_meta(folder)
        for key, value in meta.items():
            if present.get(key) != value:
                raise DatasetError(
                    f"{folder} was made with {key}={present.get(key)!r}, not {value!r}: "
                    "give another --out, or the same settings"
                )
    write_text(path, json.dumps(meta, indent=2) + "\n")


def read_meta(folder: Path) -> dict[str, Any]:
    """Return what ``meta.json`` says of a data set."""
    try:
        return json.loads((folder / META).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise DatasetError(f"{folder} is not a data set ({error}): make one with python -m training.collect") from error


def load(folder: Path) -> tuple[Frames, dict[str, Any]]:
    """Read a data set into memory, in order of the episodes' names: their frames, and its meta data.

    Where noise has driven an expert into a corner that its script does not know, its actions are no example to follow,
    and the episode is left out. Where a policy drove, its failures are what there is to learn from.
    """
    meta = read_meta(folder)
    paths = sorted(folder.glob("episode-*.npz"))
    if not paths:
        raise DatasetError(f"{folder} holds no episode: run python -m training.collect again")
    names = [field.name for field in dataclasses.fields(Frames) if field.name != "episode"]
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in (*names, "episode")}
    pictures = 0
    for path in paths:
        with np.load(path) as file:
            if not file["done"][-1] and DRIVEN not in path.name:
                continue
            episode = _defaults(len(file["done"])) | dict(file)
        episode["image"] = episode["image"] + np.int32(pictures)
        pictures += len(episode["images"])
        episode["episode"] = np.full(len(episode["done"]), episode_id(path), dtype=np.int64)
        for name, values in parts.items():
            values.append(episode[name])
    if not pictures:
        raise DatasetError(f"no episode of {folder} is successful: collect more")
    return Frames(**{name: np.concatenate(parts[name]) for name in parts}), meta


def _defaults(count: int) -> dict[str, NDArray[Any]]:
    """Return what an episode of so many frames may leave out."""
    return {
        "image": np.arange(count, dtype=np.int32),
        "seen": np.full((count, 2), np.nan, np.float32),
        "weight": np.ones(count, np.float32),
    }

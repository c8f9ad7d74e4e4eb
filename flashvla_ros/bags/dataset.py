"""Write a LeRobotDataset v3.0, one file of each kind for each episode, so that nothing written is written again.

The layout is of https://github.com/huggingface/lerobot, ``src/lerobot/datasets`` (0.4 to 0.6). ``meta/info.json`` is
replaced last and says how many episodes there are: files of an episode that was cut short are overwritten by the next.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashvla_ros.core.errors import BagError
from flashvla_ros.core.files import read_json, write_text
from flashvla_ros.core.types import FloatArray, ImageArray

os.environ.setdefault("SVT_LOG", "1")  # before the encoder is loaded: errors alone
import av
import pyarrow as pa
import pyarrow.parquet as pq

Row = tuple[Mapping[str, ImageArray], Mapping[str, Any]]  # images and values of a frame, by feature
Feature = dict[str, Any]

CODEC = "libsvtav1"  # free of royalties, takes odd sizes, and LeRobot's own choice with these options
CODEC_OPTIONS = {"g": "2", "crf": "30", "preset": "10"}
FILES_A_CHUNK = 1000
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
DEFAULTS = {
    name: {"dtype": "float32" if name == "timestamp" else "int64", "shape": [1], "names": None}
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index")
}
_PATH = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_TYPES = {"float32": pa.float32(), "float64": pa.float64(), "int64": pa.int64(), "bool": pa.bool_()}
_TYPES["string"] = pa.string()


class Dataset:
    """A dataset that grows by whole episodes.

    Attributes:
        info: What ``meta/info.json`` says; empty before the first episode of a new one.
        done: ``bag`` and ``start_ns`` of the episodes that it has.

    Raises:
        BagError: `folder` holds something else.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._info_path = folder / "meta" / "info.json"
        self._tasks: dict[str, int] = {}
        self.info: dict[str, Any] = {}
        self.done: set[tuple[str, int]] = set()
        if not self._info_path.is_file():
            if folder.exists() and not folder.is_dir():
                raise BagError(f"{folder} is a file, not a folder for a dataset")
            if folder.is_dir() and any(path.name not in ("data", "meta", "videos") for path in folder.iterdir()):
                raise BagError(f"{folder} is not a LeRobot dataset, and not empty: name another folder")
            return
        self.info = read_json(self._info_path, BagError)
        try:
            tasks = pq.read_table(folder / "meta" / "tasks.parquet").to_pylist()
            self._tasks = {task["task"]: task["task_index"] for task in tasks}
            episodes = [pq.read_table(path, columns=["bag", "start_ns"]).to_pylist()[0] for path in self._episodes()]
        except (OSError, KeyError, pa.ArrowException) as error:
            raise BagError(f"{folder} was not written by this command, or is damaged: {error}") from error
        self.done = {(episode["bag"], episode["start_ns"]) for episode in episodes}

    def declare(self, features: Mapping[str, Feature], fps: int) -> None:
        """Say what every frame has, and how many come in a second.

        Raises:
            BagError: The dataset is of another kind.
        """
        declared = {"features": {**features, **DEFAULTS}, "fps": fps}
        if not self.info:
            self.info = {
                "codebase_version": "v3.0",
                "robot_type": None,
                **dict.fromkeys(("total_episodes", "total_frames", "total_tasks"), 0),
                "chunks_size": FILES_A_CHUNK,
                "data_files_size_in_mb": 100,
                "video_files_size_in_mb": 200,
                "splits": {},
                "data_path": f"data/{_PATH}.parquet",
                "video_path": f"videos/{{video_key}}/{_PATH}.mp4",
                **declared,
            }
        for name, value in json.loads(json.dumps(declared)).items():
            if (there := self.info[name]) != value:
                if name == "features":
                    differing = sorted(key for key in {*there, *value} if there.get(key) != value.get(key))
                    raise BagError(f"{self._folder} has other features: {', '.join(differing)}; name another folder")
                raise BagError(f"{self._folder} has {there} frames a second, not {value}: set --fps, or another folder")

    def write(self, rows: Iterable[Row], about: Mapping[str, Any]) -> int:
        """Write one episode as its frames come, and return their number; no more than one frame's images are held.

        Args:
            rows: Images by feature, and values by feature, among them ``task``, the instruction.
            about: ``bag``, ``start_ns``, ``success`` (None: nobody said) and ``error``, kept in ``meta/episodes``.
        """
        features, fps, number = self.info["features"], self.info["fps"], self.info["total_episodes"]
        videos = [name for name, feature in features.items() if feature["dtype"] == "video"]
        at = {"chunk_index": number // FILES_A_CHUNK, "file_index": number % FILES_A_CHUNK}
        values: list[dict[str, Any]] = []
        with contextlib.ExitStack() as stack:
            open_videos = {
                name: stack.enter_context(_video(self._path("video_path", at, name), features[name]["shape"], fps))
                for name in videos
            }
            for images, row in rows:
                for name, video in open_videos.items():
                    video.add(images[name])
                task = self._tasks.setdefault(row["task"], len(self._tasks))
                index = len(values)
                defaults = (index / fps, index, number, self.info["total_frames"] + index, task)
                plain = {key: value.item() if np.shape(value) == (1,) else value for key, value in row.items()}
                values.append({**plain, **dict(zip(DEFAULTS, defaults, strict=True))})
        stats = {name: video.stats for name, video in open_videos.items()}
        for name in {"action", "observation.state"} & set(features):
            numbers = np.asarray([row[name] for row in values], dtype=np.float64)
            stats[name] = _stats(numbers.reshape(len(values), -1))
        last = self.info["total_frames"] + len(values)
        span = {"from_timestamp": 0.0, "to_timestamp": len(values) / fps}
        episode = {
            "episode_index": number,
            "tasks": sorted({row["task"] for row in values}),
            "length": len(values),
            "dataset_from_index": self.info["total_frames"],
            "dataset_to_index": last,
            **{f"{kind}/{name}": value for kind in ("data", "meta/episodes") for name, value in at.items()},
            **{f"videos/{key}/{name}": value for key in videos for name, value in {**at, **span}.items()},
            **about,
            **{f"stats/{key}/{name}": value.tolist() for key in stats for name, value in stats[key].items()},
        }
        _write_table(self._path("data_path", at), pa.Table.from_pylist(values, _schema(features)))
        types = pa.Table.from_pylist([episode]).schema
        for name, kind in (("success", pa.bool_()), ("error", pa.string())):  # which may be null in one file alone
            types = types.set(types.get_field_index(name), pa.field(name, kind))
        _write_table(self._episode_path(number), pa.Table.from_pylist([episode], types))
        _write_table(self._folder / "meta" / "tasks.parquet", _tasks_table(self._tasks))
        self.info |= {"total_episodes": number + 1, "total_frames": last, "total_tasks": len(self._tasks)}
        self.info["splits"] = {"train": f"0:{number + 1}"}
        write_text(self._info_path, json.dumps(self.info, indent=4))
        self.done.add((about["bag"], about["start_ns"]))
        return len(values)

    def write_stats(self) -> None:
        """Sum up the statistics of all episodes, which policies normalise by, in ``meta/stats.json``."""
        rows: dict[str, dict[str, list[Any]]] = {}
        for path in self._episodes():
            (row,) = pq.read_table(path).to_pylist()
            for name, value in row.items():
                if name.startswith("stats/"):
                    _, feature, statistic = name.split("/")
                    rows.setdefault(feature, {}).setdefault(statistic, []).append(value)
        total = {name: _combined({key: np.asarray(v) for key, v in stats.items()}) for name, stats in rows.items()}
        for name, stats in total.items():  # of a picture: [3, 1, 1]
            if self.info["features"][name]["dtype"] == "video":
                stats.update({key: value[:, None, None] for key, value in stats.items() if key != "count"})
        text = json.dumps({name: {key: v.tolist() for key, v in stats.items()} for name, stats in total.items()})
        write_text(self._folder / "meta" / "stats.json", text)

    def _path(self, kind: str, at: Mapping[str, int], key: str = "") -> Path:
        return self._folder / str(self.info[kind]).format(video_key=key, **at)

    def _episode_path(self, number: int) -> Path:
        chunk, file = divmod(number, FILES_A_CHUNK)
        return self._folder / "meta" / "episodes" / f"{_PATH.format(chunk_index=chunk, file_index=file)}.parquet"

    def _episodes(self) -> list[Path]:
        return [self._episode_path(number) for number in range(self.info["total_episodes"])]


class _Video:
    """Encodes the images of a camera, and counts their grey levels."""

    def __init__(self, container: Any, shape: Sequence[int], fps: int) -> None:
        self._container, self._shape = container, tuple(shape)
        self._stream = container.add_stream(CODEC, rate=fps, options=CODEC_OPTIONS)
        self._stream.height, self._stream.width = self._shape[:2]
        self._stream.pix_fmt = "yuv420p"
        self._levels = np.zeros((3, 256), dtype=np.int64)
        self._count = 0

    def add(self, image: ImageArray) -> None:
        """Take in the next image, uint8 [H, W, 3]."""
        if image.shape != self._shape:
            raise BagError(f"an image of {image.shape} is among those of {self._shape}: a video has one size")
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")))
        for channel in range(3):  # every fourth pixel each way tells enough
            self._levels[channel] += np.bincount(image[::4, ::4, channel].ravel(), minlength=256)
        self._count += 1

    def finish(self) -> None:
        """Write what the encoder still holds."""
        self._container.mux(self._stream.encode(None))

    @property
    def stats(self) -> dict[str, FloatArray]:
        """Of each channel, 0 to 1."""
        level, share = np.arange(256) / 255.0, self._levels / self._levels.sum(axis=1, keepdims=True)
        mean = share @ level
        seen, summed = self._levels > 0, share.cumsum(axis=1)
        found = {
            "min": level[seen.argmax(axis=1)],
            "max": level[255 - seen[:, ::-1].argmax(axis=1)],
            "mean": mean,
            "std": np.sqrt(np.maximum(share @ level**2 - mean**2, 0.0)),
            "count": np.asarray([self._count]),
        }
        return {**found, **{name: level[(summed < q).sum(axis=1).clip(0, 255)] for name, q in QUANTILES.items()}}


@contextlib.contextmanager
def _video(path: Path, shape: Sequence[int], fps: int) -> Iterator[_Video]:
    """A video that has its name once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    with av.open(str(new), "w", format="mp4") as container:
        video = _Video(container, shape, fps)
        yield video
        video.finish()
    new.replace(path)


def _stats(values: NDArray[np.float64]) -> dict[str, FloatArray]:
    """Of the columns of [n, D]."""
    found = {name: getattr(values, name)(axis=0) for name in ("min", "max", "mean", "std")}
    found["count"] = np.asarray([len(values)])
    return {**found, **{name: np.quantile(values, q, axis=0) for name, q in QUANTILES.items()}}


def _combined(stats: Mapping[str, NDArray[Any]]) -> dict[str, FloatArray]:
    """Of all episodes, out of [episodes, D] of each; quantiles are averaged, as LeRobot averages them."""
    share = stats["count"] / stats["count"].sum()
    found = {name: (share * stats[name]).sum(axis=0) for name in ("mean", *QUANTILES)}
    found["std"] = np.sqrt((share * (stats["std"] ** 2 + (stats["mean"] - found["mean"]) ** 2)).sum(axis=0))
    return {**found, "min": stats["min"].min(axis=0), "max": stats["max"].max(axis=0), "count": stats["count"].sum(0)}


def _schema(features: Mapping[str, Feature]) -> pa.Schema:
    def kind(feature: Feature) -> pa.DataType:
        (size,), value = feature["shape"], _TYPES[feature["dtype"]]
        return value if size == 1 else pa.list_(value, size)

    return pa.schema([(name, kind(feature)) for name, feature in features.items() if feature["dtype"] != "video"])


def _tasks_table(tasks: Mapping[str, int]) -> pa.Table:
    """A table whose index, for pandas, is the task itself."""

    def column(name: str, kind: str, numpy: str) -> dict[str, Any]:
        return {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}

    columns = [column("task_index", "int64", "int64"), column("task", "unicode", "object")]
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0"}
    table = pa.table({"task_index": list(tasks.values()), "task": list(tasks)})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _write_table(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    pq.write_table(table, new)
    new.replace(path)

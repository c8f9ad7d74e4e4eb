"""What a sweep over a recording costs: ``python -m flashvla_ros.bench.bag_sweep``.

Writes a bag of a 30 Hz camera, reads it through the dense pass with a stand-in for the model that costs nothing, and
sweeps the default grid of ``flashvla-ros tune``. The baseline, on the same features in the same run, plays settings
one at a time. Peak memory is that of the process after the dense pass less that before it.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from flashvla_ros.bags import sweep, tune
from flashvla_ros.bags.features import collect
from flashvla_ros.bags.options import Source
from flashvla_ros.core.settings import GateSettings, PruningSettings, Settings
from flashvla_ros.core.types import ActionSpec, Draft, Inference, Observation

_TOKENS, _KEPT = 256, 160
_HZ = 30
_BASELINE_SETTINGS = 4


class _WanderingPolicy:
    """Answers at no cost with an action and kept tokens that drift, so that settings come to differ in all they can."""

    action_size, visual_tokens = 4, _TOKENS

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self._heading = 0.0
        self._scores = self._rng.normal(size=_TOKENS)

    def infer(
        self,
        observation: Observation,  # noqa: ARG002
        pruning: PruningSettings,  # noqa: ARG002
        previous: Inference | None = None,  # noqa: ARG002
        draft: Draft | None = None,  # noqa: ARG002
    ) -> Inference:
        self._heading += self._rng.normal(0.0, 0.08)
        self._scores += self._rng.normal(0.0, 0.15, _TOKENS)
        action = np.array([[0.6 * np.cos(self._heading), 0.6 * np.sin(self._heading), 0.02, 1.0]])
        kept = np.sort(np.argsort(self._scores)[:_KEPT])
        return Inference(action, action, np.empty(0, np.int64), kept, _TOKENS)

    def reset(self) -> None:
        """Nothing to forget."""


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=120, help="length of the bag (default: %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"), help="of its images")
    args = parser.parse_args()
    base = GateSettings()
    gates = sweep.grid(base, *(tune.values(name, text) for name, text in tune.GRID.items()))
    with tempfile.TemporaryDirectory() as folder:
        bag = Path(folder) / "bag"
        _write_bag(bag, args.seconds * _HZ, *args.size)
        size_mb = sum(path.stat().st_size for path in bag.iterdir()) / 2**20
        before_mb = _peak_mb()
        started_s = time.perf_counter()
        with Source(instruction="open the drawer").open(bag) as recording:
            spec = ActionSpec.of(Settings().action)
            features = collect(recording.frames, _WanderingPolicy(), Settings(), spec, lambda: None)
        dense_s, memory_mb = time.perf_counter() - started_s, _peak_mb() - before_mb
    started_s, cpu_s = time.perf_counter(), time.process_time()
    sources = sweep.sweep(features, gates)
    sweep.evaluate([(features, sources)], gates)
    sweep_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    baseline_s = time.process_time()
    for gate in gates[:: len(gates) // _BASELINE_SETTINGS]:
        sweep.timeline(features, gate)
    baseline_s = (time.process_time() - baseline_s) / _BASELINE_SETTINGS * len(gates)
    frames = f"{len(features)} frames of {args.size[1]} x {args.size[0]}"
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {frames}")
    print("\n| what | |\n|---|---|")
    print(f"| bag on disk | {size_mb:.0f} MiB |")
    print(f"| reading and decoding in the dense pass | {dense_s:.1f} s |")
    print(f"| peak memory that the dense pass adds | {memory_mb:.0f} MiB |")
    print(f"| sweep of {len(gates)} settings | {sweep_s:.1f} s, {cpu_s:.1f} s of CPU time |")
    print(f"| baseline: one setting at a time, from {_BASELINE_SETTINGS} settings | {baseline_s:.0f} s of CPU time |")


def _write_bag(path: Path, count: int, height: int, width: int) -> None:
    store = get_typestore(Stores.ROS2_JAZZY)
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        topic = writer.add_connection("/image", "sensor_msgs/msg/Image", typestore=store)
        for index, image in enumerate(_images(count, height, width)):
            time_ns = 10**18 + index * 10**9 // _HZ
            stamp = store.types["builtin_interfaces/msg/Time"](*divmod(time_ns, 10**9))
            header = store.types["std_msgs/msg/Header"](stamp, "camera")
            message = store.types[topic.msgtype](header, height, width, "rgb8", 0, 3 * width, image.reshape(-1))
            writer.write(topic, time_ns, store.serialize_cdr(message, topic.msgtype))


def _images(count: int, height: int, width: int) -> Iterator[np.ndarray]:
    """A square that wanders over noise."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    side = height // 8
    for index in range(count):
        image = noise.copy()
        left = index % (width - side)
        image[height // 2 : height // 2 + side, left : left + side] = (240, 200, 20)
        yield image


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()

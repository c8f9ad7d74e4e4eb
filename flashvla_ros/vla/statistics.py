"""Between the robot's units and the normalised values that a network is trained on, by a data set's statistics."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flashvla_ros.core.errors import CheckpointError
from flashvla_ros.core.types import FloatArray

# What -1 and 1 stand for, by the value of model.action_bounds; with mean_std -1 and 1 are one deviation from the mean.
KINDS: Mapping[str, tuple[str, str]] = {
    "quantiles": ("q01", "q99"),
    "min_max": ("min", "max"),
    "mean_std": ("mean", "std"),
}


@dataclasses.dataclass(frozen=True)
class Bounds:
    """An affine map of D dimensions.

    Attributes:
        low: [D] value that -1 stands for.
        high: [D] value that 1 stands for.
        mask: [D] false where a dimension is not scaled.
        epsilon: Added to each range: OpenVLA-OFT's guard against dimensions that never move, also where they do.
        kind: See :data:`KINDS`.
    """

    low: FloatArray
    high: FloatArray
    mask: NDArray[np.bool_]
    epsilon: float = 0.0
    kind: str = "quantiles"

    @classmethod
    def from_statistics(
        cls,
        norm_stats: Mapping[str, Any],
        unnorm_key: str = "",
        *,
        of: str = "action",
        kind: str = "quantiles",
        epsilon: float = 0,
    ) -> Bounds:
        """Take the statistics of one data set; see :func:`choose_key`.

        Raises:
            CheckpointError: There is no such data set, or they are not usable.
        """
        entry = norm_stats[key := choose_key(norm_stats, unnorm_key)]
        values = entry.get(of) if isinstance(entry, Mapping) else None
        if not isinstance(values, Mapping):
            raise CheckpointError(f"norm_stats of {key!r} lacks {of!r}")
        one, other = names = KINDS[kind]
        if missing := [name for name in names if name not in values]:
            raise CheckpointError(
                f"norm_stats of {key!r} lacks {' and '.join(missing)} of its {of}: "
                f"copy the dataset_statistics.json that training wrote"
            )
        try:
            low, high = (np.array(values[name], dtype=np.float64) for name in names)
            mask = np.array(values.get("mask", np.ones(low.shape)), dtype=bool)
        except (TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"norm_stats of {key!r}: {one}, {other} and mask must be lists of numbers") from error
        if low.ndim != 1 or not low.size or low.shape != high.shape or low.shape != mask.shape:
            raise CheckpointError(
                f"norm_stats of {key!r}: {one}, {other} and mask must have one value for each {of} dimension"
            )
        order = f"{one} at most {other}"
        if kind == "mean_std":
            low, high, order = low - high, low + high, "std not below 0"
        used_low, used_high = low[mask], high[mask]  # what no mask uses may be anything
        if not (np.isfinite(used_low).all() and np.isfinite(used_high).all() and (used_low <= used_high).all()):
            raise CheckpointError(f"norm_stats of {key!r}: {one} and {other} must be finite, and {order}")
        return cls(low, high, mask, epsilon, kind)

    @property
    def size(self) -> int:
        """D, the number of dimensions."""
        return len(self.low)

    def unnormalize(self, normalized: ArrayLike) -> FloatArray:
        """Scale normalised values [..., D] to the robot's units."""
        values = np.asarray(normalized, dtype=np.float64)
        return np.where(self.mask, 0.5 * (values + 1.0) * (self.high - self.low + self.epsilon) + self.low, values)

    def normalize(self, values: ArrayLike) -> FloatArray:
        """Scale values [..., D] in the robot's units to normalised ones; bounds are held, a deviation is not."""
        given = np.asarray(values, dtype=np.float64)
        extent = self.high - self.low + self.epsilon
        scaled = 2.0 * (given - self.low) / np.where(extent == 0.0, 1.0, extent) - 1.0
        found = np.where(self.mask, scaled, given)
        return found if self.kind == "mean_std" else np.clip(found, -1.0, 1.0)


def choose_key(norm_stats: Mapping[str, Any], unnorm_key: str = "") -> str:
    """Return the data set whose statistics count; an empty key means the only one.

    Raises:
        CheckpointError: The key is not there, or one must be chosen.
    """
    keys = ", ".join(norm_stats)
    if not unnorm_key and len(norm_stats) != 1:
        raise CheckpointError(
            f"the checkpoint has statistics of several data sets: set model.unnorm_key to one of {keys}"
        )
    key = unnorm_key or next(iter(norm_stats))
    if key not in norm_stats:
        raise CheckpointError(f"model.unnorm_key {key!r} is not among the checkpoint's data sets: {keys}")
    return key

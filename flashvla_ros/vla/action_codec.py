"""From tokens to bins, normalised actions in [-1, 1], and actions in the robot's units.

256 edges over [-1, 1] make 255 bins; the centre of bin b is token ``vocab_size - 1 - b``, where the vocabulary counts
without its padding. Normalisation maps the 1st and 99th percentile of a data set to -1 and 1; dimensions that its mask
leaves out (mostly the gripper) are not scaled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flashvla_ros.core.errors import CheckpointError
from flashvla_ros.core.types import FloatArray
from flashvla_ros.vla.config import OpenVLAConfig


@dataclasses.dataclass(frozen=True)
class ActionCodec:
    """Translates actions of D dimensions.

    Attributes:
        vocab_size: Size of the vocabulary without padding.
        n_bins: Number of edges over [-1, 1].
        low: [D] value that -1 stands for.
        high: [D] value that 1 stands for.
        mask: [D] false where a dimension is not scaled.
    """

    vocab_size: int
    n_bins: int
    low: FloatArray
    high: FloatArray
    mask: NDArray[np.bool_]

    @classmethod
    def from_config(cls, config: OpenVLAConfig, unnorm_key: str = "") -> ActionCodec:
        """Take the statistics of one data set; an empty key means the only one.

        Raises:
            CheckpointError: The key is not there, or one must be chosen, or its statistics are not usable.
        """
        keys = ", ".join(config.norm_stats)
        if not unnorm_key and len(config.norm_stats) != 1:
            raise CheckpointError(
                f"the checkpoint has statistics of several data sets: set model.unnorm_key to one of {keys}"
            )
        key = unnorm_key or next(iter(config.norm_stats))
        if key not in config.norm_stats:
            raise CheckpointError(f"model.unnorm_key {key!r} is not among the checkpoint's data sets: {keys}")
        low, high, mask = _statistics(config.norm_stats[key], key)
        return cls(config.action_vocab_size, config.n_action_bins, low, high, mask)

    @property
    def size(self) -> int:
        """D, the number of dimensions."""
        return len(self.low)

    @property
    def centers(self) -> FloatArray:
        """[n_bins - 1] normalised value of each bin."""
        edges = np.linspace(-1.0, 1.0, self.n_bins)
        return (edges[:-1] + edges[1:]) / 2.0

    def decode(self, tokens: ArrayLike) -> FloatArray:
        """Return the normalised values of tokens; one outside the action range counts as the nearest end."""
        bins = self.vocab_size - 1 - np.asarray(tokens, dtype=np.int64)
        return self.centers[np.clip(bins, 0, self.n_bins - 2)]

    def is_action(self, tokens: ArrayLike) -> NDArray[np.bool_]:
        """Return which tokens stand for a bin."""
        bins = self.vocab_size - 1 - np.asarray(tokens, dtype=np.int64)
        return (bins >= 0) & (bins <= self.n_bins - 2)

    def unnormalize(self, normalized: ArrayLike) -> FloatArray:
        """Scale normalised actions [..., D] to the robot's units."""
        values = np.asarray(normalized, dtype=np.float64)
        return np.where(self.mask, 0.5 * (values + 1.0) * (self.high - self.low) + self.low, values)


def _statistics(entry: Any, key: str) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    action = entry.get("action") if isinstance(entry, Mapping) else None
    if not isinstance(action, Mapping):
        raise CheckpointError(f"norm_stats of {key!r} lacks 'action'")
    if missing := [name for name in ("q01", "q99") if name not in action]:
        raise CheckpointError(
            f"norm_stats of {key!r} lacks {' and '.join(missing)} of its action: "
            f"copy the dataset_statistics.json that training wrote"
        )
    try:
        low, high = (np.array(action[name], dtype=np.float64) for name in ("q01", "q99"))
        mask = np.array(action.get("mask", np.ones(low.shape)), dtype=bool)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"norm_stats of {key!r}: q01, q99 and mask must be lists of numbers") from error
    if low.ndim != 1 or not low.size or low.shape != high.shape or low.shape != mask.shape:
        raise CheckpointError(f"norm_stats of {key!r}: q01, q99 and mask must have one value for each action dimension")
    used_low, used_high = low[mask], high[mask]  # what no mask uses may be anything
    if not (np.isfinite(used_low).all() and np.isfinite(used_high).all() and (used_low <= used_high).all()):
        raise CheckpointError(f"norm_stats of {key!r}: q01 and q99 must be finite, and q01 at most q99")
    return low, high, mask

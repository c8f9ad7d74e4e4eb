"""From tokens to bins and normalised actions in [-1, 1].

256 edges over [-1, 1] make 255 bins; the centre of bin b is token ``vocab_size - 1 - b``, where the vocabulary counts
without its padding.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flashvla_ros.core.types import FloatArray


@dataclasses.dataclass(frozen=True)
class ActionCodec:
    """Translates tokens of any shape.

    Attributes:
        vocab_size: Size of the vocabulary without padding.
        n_bins: Number of edges over [-1, 1].
    """

    vocab_size: int
    n_bins: int

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

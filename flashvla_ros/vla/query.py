"""What one prefill is asked for, apart from the visual tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from flashvla_ros.core.settings import PruningSettings


@dataclasses.dataclass(frozen=True, eq=False)
class Query:
    """The decoder runs over [BOS, visual tokens, rest of the prompt, draft].

    Attributes:
        prompt: Token ids, BOS first.
        pruning: Which visual tokens the layers from ``pruning.layer`` on see.
        drafted: Guess of the action's tokens, may be empty; the last is checked without being run.
        key: Tells observations apart for the random method.
        similarity: [N] of each patch with the frame before, None where there is none.
    """

    prompt: Sequence[int]
    pruning: PruningSettings
    drafted: Sequence[int] = ()
    key: int = 0
    similarity: Tensor | None = None

    @property
    def ids(self) -> list[int]:
        """Tokens that are run besides the visual ones: the prompt and all of the draft but its last."""
        return [*self.prompt, *self.drafted[:-1]]

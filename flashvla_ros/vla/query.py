"""What one prefill is asked for, apart from the visual tokens, and what its rows are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from flashvla_ros.core.settings import PruningSettings


@dataclasses.dataclass(frozen=True)
class Layout:
    """The sequence is [BOS, N visual tokens, extra rows, rest of the prompt, draft or rows of zeros, closing tokens].

    What the network says is read from the row of the prompt's last token on: one row for each row of zeros, or one, and
    another for each drafted token but the last.

    Attributes:
        extra: Rows right behind the visual tokens that are no tokens.
        zeros: Rows of zeros behind the prompt, in the place of what is to be said.
        closing: Ids of the tokens behind them.
        full: Every row attends to every row; such a sequence is run once and nothing is decoded after it.
        chooses: The most likely tokens are chosen at the rows that are read.
        sees: The rows of BOS and of the visual tokens that are left are handed back too.
        without: A token that is never chosen; below 0: none.
    """

    extra: int = 0
    zeros: int = 0
    closing: tuple[int, ...] = ()
    full: bool = False
    chooses: bool = True
    sees: bool = False
    without: int = -1

    @property
    def rows(self) -> int:
        """Rows that are neither visual tokens nor of the prompt nor of a draft."""
        return self.extra + self.zeros + len(self.closing)

    def readers(self, length: int) -> slice:
        """Return which of `length` rows are read where there is no draft."""
        start = length - len(self.closing) - self.zeros - 1
        return slice(start, start + max(self.zeros, 1))


CAUSAL = Layout()


@dataclasses.dataclass(frozen=True, eq=False)
class Query:
    """What the decoder runs over, see :class:`Layout`.

    Attributes:
        prompt: Token ids, BOS first.
        pruning: Which visual tokens the layers from ``pruning.layer`` on see.
        drafted: Guess of the tokens to come, may be empty; the last is checked without being run.
        key: Tells observations apart for the random method.
        similarity: [N] of each patch with the frame before, None where there is none.
        layout: Of the sequence.
        extra: [E, d] the rows behind the visual tokens; None where there are none.
    """

    prompt: Sequence[int]
    pruning: PruningSettings
    drafted: Sequence[int] = ()
    key: int = 0
    similarity: Tensor | None = None
    layout: Layout = CAUSAL
    extra: Tensor | None = None

    @property
    def ids(self) -> list[int]:
        """Tokens that are run besides the visual ones; a row of zeros stands as token 0."""
        return [*self.prompt, *self.drafted[:-1], *[0] * self.layout.zeros, *self.layout.closing]

    @property
    def reads(self) -> int:
        """How many rows are read."""
        return max(self.layout.zeros, len(self.drafted), 1)

    def length(self, count: int) -> int:
        """Return the rows up to the end of the prompt, `count` visual tokens among them."""
        return count + self.layout.extra + len(self.prompt)

    def scored(self, count: int) -> int:
        """Return the rows that a pruning method may look at: those that the draft does not reach."""
        return self.length(count) + (self.layout.zeros + len(self.layout.closing) if self.layout.full else 0)

"""The engine over static buffers: recorded as CUDA graphs on a GPU, called directly on the CPU.

Nothing here waits for the device. Shapes depend on the bucket of the prompt's length, on ``pruning.layer`` and on the
number of tokens kept, never on what a tensor holds. An instruction of another bucket and another budget need other
runs of kernels, which are recorded over the steps that follow (:mod:`.graphs`).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence

from torch import Tensor

from flashvla_ros.vla.attention import StaticAttention
from flashvla_ros.vla.decoding import Decoded, Draw, untimed
from flashvla_ros.vla.engine.buffers import PromptBuffers
from flashvla_ros.vla.engine.graphs import DirectCalls, Run
from flashvla_ros.vla.engine.kernels import Kernels
from flashvla_ros.vla.engine.lean import LeanDecoder
from flashvla_ros.vla.model import PrismaticVLM
from flashvla_ros.vla.pruning.select import METHODS, all_kept, plan_prefill
from flashvla_ros.vla.query import Layout, Query

_BUCKETS = 4  # prompt lengths whose buffers are kept, the least recently used goes first
_RUNS = 32  # recorded runs of one bucket; all go where there would be more


class RecordedRuns:
    """Buffers of one bucket of prompt lengths, and the calls that were recorded over them."""

    def __init__(self, buffers: PromptBuffers, recorder: DirectCalls) -> None:
        self.buffers = buffers
        self._recorder = recorder
        self._runs: dict[tuple[Hashable, ...], Run] = {}  # by a function and all that its kernels depend on

    def of(self, function: Callable[..., None], *arguments: Hashable) -> Run:
        """Return what runs `function(buffers, *arguments)`, recorded once."""
        key = function, *arguments
        if key not in self._runs:
            if len(self._runs) >= _RUNS:
                self._runs.clear()
            self._runs[key] = self._recorder.record(functools.partial(function, self.buffers, *arguments))
        return self._runs[key]


@dataclasses.dataclass(frozen=True, eq=False)
class StaticStart:
    """The decoder after the prompt; valid until the next prefill.

    Attributes:
        choices, certainty, hidden, visual, kept: See :class:`.base.Start`.
        buffers: Where it happened.
        step: Decodes one more token there; None under full attention.
    """

    choices: Tensor
    certainty: Tensor
    hidden: Tensor
    visual: Tensor | None
    kept: Tensor | None
    buffers: PromptBuffers
    step: Run | None


class StaticEngine:
    """See :class:`flashvla_ros.vla.engine.base.Engine`.

    Args:
        model: In evaluation mode; its weights are rearranged, not copied.
        size: Tokens of an action.
        attention: Over these buffers.
        recorder: CUDA graphs or direct calls.
        granularity: Prompt lengths are rounded up to a multiple of it.
        decoder: Layers of `model`; made of it where it is None.
    """

    def __init__(
        self,
        model: PrismaticVLM,
        size: int,
        attention: StaticAttention,
        recorder: DirectCalls,
        granularity: int,
        decoder: LeanDecoder | None = None,
    ) -> None:
        self.model = model
        self._size, self._granularity, self._recorder = size, granularity, recorder
        self._kernels = Kernels(model, attention, decoder or LeanDecoder(model))
        self._buckets: collections.OrderedDict[tuple[int, Layout], RecordedRuns] = collections.OrderedDict()
        self._see: Run | None = None

    @property
    def warm(self) -> bool:
        """See :class:`flashvla_ros.vla.engine.base.Engine`."""
        return self._recorder.warm

    def visual_tokens(self, pixels: Tensor) -> Tensor:
        """See :class:`flashvla_ros.vla.engine.base.Engine`."""
        self._recorder.begin()
        if self._see is None:
            self._see = self._recorder.record(self._kernels.see)
        self._kernels.pixels.copy_(pixels)
        self._see()
        return self._kernels.visual

    def prefill(self, visual: Tensor, query: Query, *, done: Callable[[str], None] = untimed) -> StaticStart:
        """See :class:`flashvla_ros.vla.engine.base.Engine`."""
        kernels, pruning, count = self._kernels, query.pruning, visual.shape[1]
        k, layer = plan_prefill(pruning, count, len(self.model.layers))
        runs = self._runs_for(len(query.ids), query.layout)
        buffers, layout = runs.buffers, query.layout

        if visual is not kernels.visual:
            kernels.visual.copy_(visual)
        if query.extra is not None:
            buffers.extra[0].copy_(query.extra)
        buffers.input([query.length(count), *query.ids])
        runs.of(kernels.before, layer)()
        stay = count
        kept: Tensor | None
        if k < count:
            done("prefill")
            kept = self._choose(runs, k, query)
            done("scoring")
            stay = len(kept) if pruning.drop else count
        else:
            kept = all_kept(pruning, visual)
        runs.of(kernels.after, layer, stay, self._size if query.drafted else query.reads)()
        step = None if layout.full else runs.of(kernels.step, layer, stay)
        seen = buffers.seen[: 1 + stay] if layout.sees else None
        choices, certainty, read = (
            tensor[: query.reads] for tensor in (buffers.choices, buffers.certainty, buffers.read)
        )
        return StaticStart(choices, certainty, read, seen, kept, buffers, step)

    def decode(self, start: StaticStart, known: Sequence[int], draw: Draw | None = None) -> Decoded:
        """Return the tokens [size] of the action; see :func:`..decoding.decode`. Valid until the next prefill."""
        assert start.step is not None, "nothing is decoded behind full attention"  # noqa: S101  # of the code
        buffers = start.buffers
        if known:
            buffers.settled([len(known), *known])
        for place in range(max(len(known), 1), self._size):
            start.step()
            if draw is not None:
                buffers.tokens[place] = draw(self.model.language_model.lm_head(buffers.read[place]))
        return Decoded(*(tensor[: self._size] for tensor in (buffers.tokens, buffers.read, buffers.certainty)))

    def _runs_for(self, length: int, layout: Layout) -> RecordedRuns:
        """Return those of the bucket of `length` tokens; rows that attend to all would see a bucket's padding."""
        prompt = length if layout.full else -(-length // self._granularity) * self._granularity
        key = prompt, layout
        if key not in self._buckets:
            buffers = PromptBuffers(self.model, prompt, self._size, layout)
            self._buckets[key] = RecordedRuns(buffers, self._recorder)
        self._buckets.move_to_end(key)
        while len(self._buckets) > _BUCKETS:
            self._buckets.popitem(last=False)
        return self._buckets[key]

    def _choose(self, runs: RecordedRuns, k: int, query: Query) -> Tensor:
        """Select visual tokens and return their indices, which then stand in the buffers."""
        buffers, pruning = runs.buffers, query.pruning
        method, length = METHODS[pruning.method], query.scored(self._kernels.visual.shape[1])
        if method.recordable:
            runs.of(self._kernels.choose, k, length if method.reads_text else buffers.rows, pruning)()
            return buffers.kept[:k]
        chosen = method.select(self._kernels.seen(buffers, length, query), k, pruning)
        buffers.kept[: len(chosen)].copy_(chosen)
        return buffers.kept[: len(chosen)]

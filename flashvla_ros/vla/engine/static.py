"""The engine over static buffers: recorded as CUDA graphs on a GPU, called directly on the CPU.

Nothing here waits for the device. Shapes depend on the bucket of the prompt's length, on ``pruning.layer`` and on the
number of tokens kept, never on what a tensor holds. A run of kernels is recorded when it is needed for the first time;
a new instruction of another bucket or another budget therefore costs one slow step.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from flashvla_ros.core.settings import PruningSettings
from flashvla_ros.vla.decoding import untimed
from flashvla_ros.vla.engine.attention import StaticAttention
from flashvla_ros.vla.engine.buffers import PromptBuffers
from flashvla_ros.vla.engine.graphs import Recorder, Run
from flashvla_ros.vla.engine.lean import LeanDecoder
from flashvla_ros.vla.engine.query import Query
from flashvla_ros.vla.model import OpenVLA
from flashvla_ros.vla.pruning.probe import LayerView, view_of
from flashvla_ros.vla.pruning.select import METHODS, check_layer, kept_count

_BUCKETS = 4  # prompt lengths whose buffers are kept, the least recently used goes first
_RUNS = 32  # recorded runs of one bucket; all go where there would be more


@dataclasses.dataclass(eq=False)
class Bucket:
    """Buffers of one bucket of prompt lengths, and what was recorded over them."""

    buffers: PromptBuffers
    runs: dict[tuple[object, ...], Run] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class StaticStart:
    """The decoder after the prompt; valid until the next prefill.

    Attributes:
        choices: [n] most likely tokens after the prompt and after each token of the draft but the last.
        kept: [k] indices of the selected visual tokens, None where nothing was scored.
        bucket: Where it happened.
        first: First decoder layer without the dropped tokens.
        stay: Visual tokens that this layer sees.
    """

    choices: Tensor
    kept: Tensor | None
    bucket: Bucket
    first: int
    stay: int


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
        model: OpenVLA,
        size: int,
        attention: StaticAttention,
        recorder: Recorder,
        granularity: int,
        decoder: LeanDecoder | None = None,
    ) -> None:
        self.model = model
        self._size, self._granularity = size, granularity
        self._attention, self._recorder = attention, recorder
        self._decoder = decoder or LeanDecoder(model)
        self._count = model.config.visual_tokens
        weight, config = self._decoder.embedding, model.config
        side = config.towers[0].image_size
        self._pixels = weight.new_zeros(config.num_images_in_input, 3 * len(config.towers), side, side)
        self._visual = weight.new_zeros(1, self._count, weight.shape[1])
        self._buckets: collections.OrderedDict[int, Bucket] = collections.OrderedDict()
        self._vision: Run | None = None

    def visual_tokens(self, pixels: Tensor) -> Tensor:
        """See :class:`flashvla_ros.vla.engine.base.Engine`."""
        if self._vision is None:
            self._vision = self._recorder.record(self._see)
        self._pixels.copy_(pixels)
        self._vision()
        return self._visual

    def prefill(self, visual: Tensor, query: Query, *, done: Callable[[str], None] = untimed) -> StaticStart:
        """See :class:`flashvla_ros.vla.engine.base.Engine`."""
        pruning, drafted = query.pruning, query.drafted
        check_layer(pruning, len(self.model.layers))
        if visual is not self._visual:
            self._visual.copy_(visual)
        bucket = self._bucket(len(query.prompt) + max(len(drafted) - 1, 0))
        buffers, count = bucket.buffers, self._count
        k = count if pruning.method == "none" else kept_count(pruning.keep_ratio, count)
        layer = pruning.layer if k < count else 0
        length = count + len(query.prompt)
        before = self._run(bucket, self._before, layer)
        choose = self._chooser(bucket, k, length, query) if k < count else None
        buffers.input([length, *query.prompt, *drafted[:-1]])
        before()
        kept, stay = None, count
        if choose is not None:
            done("prefill")
            kept = buffers.kept[: choose()]
            done("scoring")
            stay = len(kept) if pruning.drop else count
        elif pruning.method != "none":
            kept = torch.arange(count, device=visual.device)
        after = self._run(bucket, self._after, layer, stay, self._size if drafted else 1)
        self._run(bucket, self._step, layer, stay)
        buffers.input([length])  # recording used it
        after()
        return StaticStart(buffers.choices[: max(len(drafted), 1)], kept, bucket, layer, stay)

    def decode(self, start: StaticStart, known: Sequence[int]) -> Tensor:
        """Return the tokens [size] of the action; see :func:`..decoding.decode`. Valid until the next prefill."""
        buffers = start.bucket.buffers
        if known:
            buffers.settled([len(known), *known])
        step = self._run(start.bucket, self._step, start.first, start.stay)
        for _ in range(self._size - max(len(known), 1)):
            step()
        return buffers.tokens[: self._size]

    def _bucket(self, length: int) -> Bucket:
        prompt = -(-length // self._granularity) * self._granularity
        if prompt not in self._buckets:
            self._buckets[prompt] = Bucket(PromptBuffers(self.model, prompt, self._size))
        self._buckets.move_to_end(prompt)
        while len(self._buckets) > _BUCKETS:
            self._buckets.popitem(last=False)
        return self._buckets[prompt]

    def _run(self, bucket: Bucket, make: Callable[..., Run], *arguments: Hashable) -> Run:
        """Return `make(buffers, *arguments)`, recorded once."""
        key = (make.__name__, *arguments)
        if key not in bucket.runs:
            if len(bucket.runs) >= _RUNS:
                bucket.runs.clear()
            bucket.buffers.scratch()
            bucket.runs[key] = self._recorder.record(make(bucket.buffers, *arguments))
        return bucket.runs[key]

    def _chooser(self, bucket: Bucket, k: int, length: int, query: Query) -> Callable[[], int]:
        """Return what selects tokens, writes their indices into the buffers and returns their number."""
        buffers, pruning = bucket.buffers, query.pruning
        method = METHODS[pruning.method]
        if method.recordable:
            run = self._run(bucket, self._choose, k, length if method.reads_text else buffers.rows, pruning)

            def recorded() -> int:
                run()
                return k

            return recorded

        def direct() -> int:
            view = self._view(buffers, length, pruning.layer, query)
            chosen = method.select(view, k, pruning)
            buffers.kept[: len(chosen)].copy_(chosen)
            return len(chosen)

        return direct

    def _view(self, buffers: PromptBuffers, length: int, layer: int, query: Query | None = None) -> LayerView:
        """What a pruning method may look at: the rows before the draft and the padding."""
        rotary = tuple(part[:, :length] for part in buffers.rotary)
        states = (tensor[:, :length] for tensor in (buffers.entering, buffers.attention, buffers.hidden))
        key, similarity = (query.key, query.similarity) if query else (0, None)
        return view_of(self.model, self._visual, *states, layer, rotary, key=key, similarity=similarity)

    # What is recorded. Each returns a function over the buffers.

    def _see(self) -> None:
        self._visual.copy_(self.model.visual_tokens(self._pixels))

    def _before(self, buffers: PromptBuffers, layer: int) -> Run:
        """Embed the sequence and run the layers before `layer`."""
        rotary = tuple(part[:, : buffers.rows] for part in buffers.rotary)

        def run() -> None:
            text = self._decoder.embedding[buffers.ids]
            entering = hidden = attention = torch.cat([text[:, :1], self._visual, text[:, 1:]], dim=1)
            for index in range(layer):
                entering = hidden
                hidden, attention = self._decoder.layers[index](hidden, rotary, self._causal(buffers, index))
            buffers.entering.copy_(entering)
            buffers.hidden.copy_(hidden)
            buffers.attention.copy_(attention)

        return run

    def _choose(self, buffers: PromptBuffers, k: int, length: int, pruning: PruningSettings) -> Run:
        """Select `k` visual tokens by what the first `length` rows hold."""

        def run() -> None:
            view = self._view(buffers, length, pruning.layer)
            buffers.kept[:k].copy_(METHODS[pruning.method].select(view, k, pruning))

        return run

    def _after(self, buffers: PromptBuffers, layer: int, stay: int, outputs: int) -> Run:
        """Drop all but `stay` visual tokens, run the layers from `layer` on, choose `outputs` tokens."""
        device, dropped = buffers.kept.device, self._count - stay
        rotary = tuple(part[:, : buffers.rows] for part in buffers.rotary)
        start = torch.zeros(1, dtype=torch.int64, device=device)
        text = torch.arange(1 + self._count, buffers.rows, device=device)
        ahead = torch.arange(-1 - dropped, outputs - 1 - dropped, device=device)

        def run() -> None:
            hidden, turned = buffers.hidden, rotary
            if dropped:
                rows = torch.cat([start, buffers.kept[:stay] + 1, text])
                hidden = hidden.index_select(1, rows)
                turned = tuple(part.index_select(1, rows) for part in rotary)
            for index in range(layer, len(self._decoder.layers)):
                hidden, _ = self._decoder.layers[index](hidden, turned, self._causal(buffers, index))
            last = (buffers.length + ahead).clamp(max=hidden.shape[1] - 1)
            choices = self._decoder.choices(hidden.index_select(1, last))
            buffers.choices[:outputs].copy_(choices)
            buffers.tokens[:1].copy_(choices[:1])
            buffers.place.fill_(1)

        return run

    def _step(self, buffers: PromptBuffers, layer: int, stay: int) -> Run:
        """Decode one token."""
        dropped = self._count - stay

        def run() -> None:
            position = buffers.length + buffers.place - 1
            hidden = self._decoder.embedding[buffers.tokens[buffers.place - 1]][None]
            rotary = tuple(part.index_select(1, position) for part in buffers.rotary)
            for index, decoder_layer in enumerate(self._decoder.layers):
                shift = dropped if index >= layer else 0
                attend = self._appending(buffers, index, position - shift, buffers.slots - shift)
                hidden, _ = decoder_layer(hidden, rotary, attend)
            buffers.tokens.index_copy_(0, buffers.place, self._decoder.choices(hidden))
            buffers.place.add_(1)

        return run

    def _causal(self, buffers: PromptBuffers, index: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            rows = keys.shape[2]
            buffers.keys[index, :, :, :rows].copy_(keys)
            buffers.values[index, :, :, :rows].copy_(values)
            return self._attention.causal(queries, keys, values)

        return attend

    def _appending(
        self, buffers: PromptBuffers, index: int, slot: Tensor, slots: int
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = buffers.keys[index, :, :, :slots], buffers.values[index, :, :, :slots]
            keys.index_copy_(2, slot, key)
            values.index_copy_(2, slot, value)
            return self._attention.last(query, keys, values, slot)

        return attend

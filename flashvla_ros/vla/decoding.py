"""Greedy decoding of action tokens for one observation: pruned prefill, then one token at a time from a cache."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from flashvla_ros.core.settings import PruningSettings
from flashvla_ros.vla.model import OpenVLA, Rotary, kept_rows, take_rows
from flashvla_ros.vla.pruning.probe import run_and_view
from flashvla_ros.vla.pruning.select import METHODS, check_layer, kept_count


class KeyValueCache:
    """Keys and values of each layer, with room for the tokens to come; layers may hold different numbers of tokens."""

    def __init__(self, layers: int, room: int) -> None:
        self._room = room
        self._stores: list[tuple[Tensor, Tensor] | None] = [None] * layers
        self._lengths = [0] * layers

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append the keys and values [1, H, L, D] of new tokens; return those of all tokens of that layer."""
        start = self._lengths[layer]
        stop = self._lengths[layer] = start + keys.shape[2]
        if (stores := self._stores[layer]) is None:
            shape = (*keys.shape[:2], stop + self._room, keys.shape[3])
            stores = self._stores[layer] = (keys.new_empty(shape), values.new_empty(shape))
        key_store, value_store = stores
        key_store[:, :, start:stop] = keys
        value_store[:, :, start:stop] = values
        if start == 0:
            return keys, values
        return key_store[:, :, :stop], value_store[:, :, :stop]


@dataclasses.dataclass(frozen=True)
class Prefill:
    """The decoder after the prompt.

    Attributes:
        logits: [1, 1, vocabulary] that predict the first action token.
        cache: Keys and values of the prompt.
        length: Number of prompt tokens before pruning; decoding continues at this rotary position.
        kept: Ascending indices [k] of the selected visual tokens, or None where nothing was scored.
    """

    logits: Tensor
    cache: KeyValueCache
    length: int
    kept: Tensor | None


def prefill(
    model: OpenVLA,
    visual: Tensor,
    input_ids: Tensor,
    room: int,
    pruning: PruningSettings,
    key: int = 0,
    similarity: Tensor | None = None,
) -> Prefill:
    """Run the decoder over [BOS, visual tokens, rest of the prompt].

    Args:
        model: In evaluation mode.
        visual: [1, N, d].
        input_ids: [1, P], BOS first.
        room: Number of tokens that will be decoded after the first.
        pruning: Which visual tokens the layers from ``pruning.layer`` on see.
        key: Tells observations apart for the random method.
        similarity: [N] of each patch with the frame before, for the temporal method; None: there was none.

    Raises:
        SettingsError: ``pruning.layer`` is not a layer of this decoder.
    """
    depth, count = len(model.layers), visual.shape[1]
    check_layer(pruning, depth)
    hidden = model.embed(visual, input_ids)
    length = hidden.shape[1]
    rotary = model.rotary(hidden, torch.arange(length, device=hidden.device)[None])
    mask = model.causal_mask(hidden)
    cache = KeyValueCache(depth, room)
    kept, first = None, 0
    if pruning.method != "none":
        k, first = kept_count(pruning.keep_ratio, count), pruning.layer
        if k == count:
            kept = torch.arange(count, device=hidden.device)
            hidden = model.run_layers(hidden, range(first), rotary, mask, cache)
        else:
            hidden, view = run_and_view(
                model, hidden, count, first, rotary, mask, cache, key=key, similarity=similarity
            )
            kept = METHODS[pruning.method].select(view, k, pruning)
            if pruning.drop:
                hidden, rotary = _drop(hidden, rotary, kept, count)
                mask = model.causal_mask(hidden)
    hidden = model.run_layers(hidden, range(first, depth), rotary, mask, cache)
    return Prefill(model.logits(hidden[:, -1:]), cache, length, kept)


def _drop(hidden: Tensor, rotary: Rotary, kept: Tensor, count: int) -> tuple[Tensor, Rotary]:
    rows = kept_rows(kept[None], count, hidden.shape[1])
    return take_rows(hidden, rows), (take_rows(rotary[0], rows), take_rows(rotary[1], rows))


def decode(model: OpenVLA, start: Prefill, count: int) -> Tensor:
    """Return the `count` most likely tokens [count], on the model's device, each fed back to predict the next.

    As in the official code the choice is over the whole vocabulary, not over the action tokens alone.
    """
    embeddings = model.language_model.model.embed_tokens
    depth = range(len(model.layers))
    tokens = [start.logits.argmax(dim=-1)]
    positions = torch.arange(start.length, start.length + count - 1, device=start.logits.device)[None]
    cosines, sines = model.rotary(start.logits, positions)
    for step in range(count - 1):
        rotary = cosines[:, step : step + 1], sines[:, step : step + 1]
        hidden = model.run_layers(embeddings(tokens[-1]), depth, rotary, None, start.cache)
        tokens.append(model.logits(hidden).argmax(dim=-1))
    return torch.cat(tokens, dim=1)[0]

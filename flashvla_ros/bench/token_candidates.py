"""Variations of ICS that were tried as remedies: other tensors, centring, sinks, mixtures. None is a parameter.

Each is a rule like those of :data:`flashvla_ros.vla.pruning.select.METHODS`; one that helps moves there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import normalize

from flashvla_ros.core.settings import PruningSettings
from flashvla_ros.vla.pruning.diversity import farthest_from_each_other
from flashvla_ros.vla.pruning.probe import LayerView
from flashvla_ros.vla.pruning.scores import centred, information_contribution, row_norm
from flashvla_ros.vla.pruning.select import Selector, top_k

Score = Callable[[LayerView], Tensor]  # [N]


def _by(score: Score) -> Selector:
    return lambda view, k, _settings: top_k(score(view), k)


def values(view: LayerView) -> Tensor:
    """[N, G * D] values of the last layer that sees every token; :attr:`LayerView.values` are those of the next."""
    projections = view.projections
    layer = projections.model.layers[projections.index]
    entering = projections.entering[0, 1 : 1 + len(view.embeddings)]
    states: Tensor = layer.self_attn.v_proj(layer.input_layernorm(entering))
    return states


def written(view: LayerView) -> Tensor:
    """[N, d] what each token adds to the residual stream where it is attended to: values after output projection."""
    projections = view.projections
    heads = values(view)
    layer = projections.model.layers[projections.index]
    repeated = layer.self_attn.o_proj.in_features // heads.shape[1]
    size = layer.self_attn.head_dim
    heads = heads.unflatten(1, (-1, size)).repeat_interleave(repeated, dim=1).flatten(1)
    added: Tensor = layer.self_attn.o_proj(heads)
    return added


def without_sinks(scores: Tensor, rows: Tensor, share: float = 0.05) -> Tensor:
    """Give the rows of largest norm, `share` of all, the lowest score."""
    sinks = row_norm(rows).argsort(descending=True)[: max(round(share * len(rows)), 1)]
    return scores.index_fill(0, sinks, -torch.inf)


def by_rank(scores: Tensor) -> Tensor:
    """[N] from 0, the lowest, to 1, the highest."""
    return scores.argsort(stable=True).argsort(stable=True).float() / max(len(scores) - 1, 1)


def text_relevance(view: LayerView) -> Tensor:
    """[N] mean raw q·k of all text tokens with each visual one, no rotary embedding (VLA-ADP's score)."""
    projections = view.projections
    layer, count = projections.model.layers[projections.index], len(view.embeddings)
    rows = layer.input_layernorm(projections.entering[0])
    queries = layer.self_attn.q_proj(rows[1 + count :]).float()
    keys = layer.self_attn.k_proj(rows[1 : 1 + count]).float()
    if queries.shape[1] != keys.shape[1]:  # grouped heads
        heads = queries.shape[1] // layer.self_attn.head_dim
        keys = keys.unflatten(1, (-1, layer.self_attn.head_dim))
        keys = keys.repeat_interleave(heads // keys.shape[1], dim=1).flatten(1)
    return keys @ queries.mean(dim=0)


def diverse_of_best(score: Score) -> Selector:
    """DivPrune among the best 2k by a score, or all of them where there are fewer."""

    def select(view: LayerView, k: int, _settings: PruningSettings) -> Tensor:
        pool = top_k(score(view), min(2 * k, len(view.embeddings)))
        return pool[farthest_from_each_other(view.embeddings[pool], k)].sort().values

    return select


def spread_over_image(score: Score, groups: int = 16) -> Selector:
    """The same share of every stretch of the image: best by a score within each of `groups` runs of tokens."""

    def select(view: LayerView, k: int, _settings: PruningSettings) -> Tensor:
        scores, count = score(view), len(view.embeddings)
        parts = torch.arange(count, device=scores.device).tensor_split(min(groups, count))
        ranks = torch.cat([by_rank(scores[part]) * (len(part) - 1) / len(part) for part in parts])
        return top_k(ranks + 1e-6 * by_rank(scores), k)

    return select


def spanning(rows: Tensor, k: int) -> Tensor:
    """Ascending indices [k]: always the row farthest from the span of those chosen, pivoted Gram-Schmidt."""
    left = centred(rows).clone()
    chosen: list[int] = []
    for _ in range(k):
        sizes = left.square().sum(dim=1)
        sizes[chosen] = -1.0
        index = int(sizes.argmax())
        chosen.append(index)
        axis = normalize(left[index], dim=0)
        left -= (left @ axis)[:, None] * axis
    return torch.tensor(sorted(chosen), device=rows.device)


def representing(rows: Tensor, k: int) -> Tensor:
    """Ascending indices [k] of rows that are distributed as all are: kernel herding, Gaussian of median width."""
    squares = torch.cdist(rows.float(), rows.float()).square()
    kernel = (-squares / squares.median().clamp(min=1e-12)).exp()
    wanted, had = kernel.mean(dim=1), torch.zeros(len(rows), device=rows.device)
    chosen: list[int] = []
    for number in range(k):
        scores = wanted - had / (number + 1)
        scores[chosen] = -torch.inf
        chosen.append(int(scores.argmax()))
        had += kernel[chosen[-1]]
    return torch.tensor(sorted(chosen), device=rows.device)


def grid(view: LayerView, k: int, _settings: PruningSettings) -> Tensor:
    """Evenly spaced tokens, whatever they show."""
    count = len(view.embeddings)
    return (torch.arange(k, device=view.embeddings.device) * count) // k


def _ics(view: LayerView) -> Tensor:
    return information_contribution(view.attention)


def _centred(view: LayerView) -> Tensor:
    return information_contribution(centred(view.attention))


CANDIDATES: Mapping[str, Selector] = {
    "ics of projector output": _by(lambda view: information_contribution(view.embeddings)),
    "ics of values": _by(lambda view: information_contribution(values(view))),
    "ics of unit rows": _by(lambda view: information_contribution(normalize(view.attention.float(), dim=1))),
    "ics, centred": _by(_centred),
    "ics of projector output, centred": _by(lambda view: information_contribution(centred(view.embeddings))),
    "ics of hidden, centred": _by(lambda view: information_contribution(centred(view.hidden))),
    "ics of values, centred": _by(lambda view: information_contribution(centred(values(view)))),
    "norm of values": _by(lambda view: row_norm(values(view))),
    "norm of values, centred": _by(lambda view: row_norm(centred(values(view)))),
    "ics of next values": _by(lambda view: information_contribution(view.values)),
    "norm of next values, centred": _by(lambda view: row_norm(centred(view.values))),
    "ics of next values, centred, rank 8": _by(lambda view: information_contribution(centred(view.values), 8)),
    "next values, centred, then diverse": diverse_of_best(lambda view: information_contribution(centred(view.values))),
    "ics of written values": _by(lambda view: information_contribution(written(view))),
    "ics of values without sinks": _by(
        lambda view: without_sinks(information_contribution(values(view)), values(view))
    ),
    "ics of values, then diverse": diverse_of_best(lambda view: information_contribution(values(view))),
    "diverse values": lambda view, k, _settings: farthest_from_each_other(values(view), k).sort().values,
    "spanning next values": lambda view, k, _settings: spanning(view.values, k),
    "spanning hidden": lambda view, k, _settings: spanning(view.hidden, k),
    "representing next values": lambda view, k, _settings: representing(view.values, k),
    "representing hidden": lambda view, k, _settings: representing(view.hidden, k),
    "ics without sinks": _by(lambda view: without_sinks(_ics(view), view.attention)),
    "ics, rank 1": _by(lambda view: information_contribution(view.attention, 1)),
    "ics, rank 4": _by(lambda view: information_contribution(view.attention, 4)),
    "ics, lowest first": _by(lambda view: -_ics(view)),
    "ics, then diverse": diverse_of_best(_ics),
    "ics centred, then diverse": diverse_of_best(_centred),
    "ics and text": _by(lambda view: by_rank(_ics(view)) + by_rank(text_relevance(view))),
    "text": _by(text_relevance),
    "ics, spread": spread_over_image(_ics),
    "ics centred, spread": spread_over_image(_centred),
    "norm of projector output": _by(lambda view: row_norm(view.embeddings)),
    "attention, spread": spread_over_image(lambda view: view.projections.last_attention[1 : 1 + len(view.embeddings)]),
    "grid": grid,
}

"""From what one decoder layer shows to the visual tokens that are kept: the methods by their parameter's name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.settings import PruningSettings
from flashvla_ros.vla.pruning.diversity import farthest_from_each_other, least_duplicated
from flashvla_ros.vla.pruning.probe import TokenStates
from flashvla_ros.vla.pruning.scores import centred, information_contribution, row_norm

_MASK_64 = (1 << 64) - 1

# Token states, number to keep k, settings → ascending indices [k].
Selector = Callable[[TokenStates, int, PruningSettings], Tensor]
Score = Callable[[TokenStates, PruningSettings], Tensor]  # [N]


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to select tokens.

    Attributes:
        select: The rule.
        source: Where it was published.
        reads: What it looks at.
        reads_at_0: What it looks at where ``pruning.layer`` is 0 and no decoder layer has run.
        needs_attention: It needs attention weights; the rows it reads are computed apart from the layer's own.
        needs_frame: It compares the frame with the one before.
        recordable: Which kernels run depends on shapes and settings alone, so a CUDA graph can record it.
        reads_text: It looks at the prompt, so that a record of it serves prompts of one length.
    """

    select: Selector
    source: str
    reads: str
    reads_at_0: str = "projector output"
    needs_attention: bool = False
    needs_frame: bool = False
    recordable: bool = True
    reads_text: bool = False


def plan_prefill(pruning: PruningSettings, count: int, depth: int) -> tuple[int, int]:
    """Plan the prefill of `count` visual tokens in a decoder of `depth` layers, whichever engine runs it.

    Returns:
        Number of tokens to keep, and the first decoder layer that may miss the others; 0 where all are kept.

    Raises:
        SettingsError: ``pruning.layer`` is not a layer of this decoder.
    """
    check_layer(pruning, depth)
    k = count if pruning.method == "none" else kept_count(pruning.keep_ratio, count)
    return k, pruning.layer if k < count else 0


def all_kept(pruning: PruningSettings, visual: Tensor) -> Tensor | None:
    """Return the indices [N] of all visual tokens [1, N, d], for a prefill that chooses none; None without a method."""
    return None if pruning.method == "none" else torch.arange(visual.shape[1], device=visual.device)


def kept_count(keep_ratio: float, count: int) -> int:
    """Return k, the number of `count` tokens that are kept; at least one."""
    return min(max(math.floor(keep_ratio * count + 0.5), 1), count)


def top_k(scores: Tensor, k: int) -> Tensor:
    """Return the ascending indices [k] of the highest scores [N]; of equal ones the first counts as higher."""
    return scores.argsort(descending=True, stable=True)[:k].sort().values


def _by_score(score: Score) -> Selector:
    def select(seen: TokenStates, k: int, settings: PruningSettings) -> Tensor:
        return top_k(score(seen, settings), k)

    return select


def _permutation(count: int, seed: int, key: int) -> Tensor:
    generator = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + key) & _MASK_64)
    return torch.randperm(count, generator=generator)


def _random(seen: TokenStates, k: int, settings: PruningSettings) -> Tensor:
    """Choose by a seed made of ``pruning.seed`` and the observation, so that a replay chooses the same tokens."""
    chosen = _permutation(len(seen.embeddings), settings.seed, seen.key)[:k]
    return chosen.sort().values.to(seen.embeddings.device)


def _fastv(seen: TokenStates, settings: PruningSettings) -> Tensor:  # noqa: ARG001
    """Attention that the last token of the prompt pays to each visual token, mean over heads (FastV, 2403.06764)."""
    return seen.projections.last_attention[1 : 1 + len(seen.embeddings)]


def _ics_values(seen: TokenStates, settings: PruningSettings) -> Tensor:
    """ICS of what the next layer would read and not of what the last one wrote.

    Attention gives a mean of values with weights that sum to one, Σ aⱼvⱼ = v̄ + Σ aⱼ(vⱼ - v̄): a token whose value is the
    mean of all can go unnoticed, however large it is.
    """
    return information_contribution(centred(seen.values), settings.rank)


def _divprune(seen: TokenStates, k: int, settings: PruningSettings) -> Tensor:  # noqa: ARG001
    return farthest_from_each_other(seen.embeddings, k).sort().values


def _dart(seen: TokenStates, k: int, settings: PruningSettings) -> Tensor:  # noqa: ARG001
    projections = seen.projections
    norms = projections.keys[:, 1:].float().abs().sum(dim=(0, 2))  # L1, as released
    states = projections.model.language_model.model.norm(torch.cat([seen.hidden, seen.text]))
    return least_duplicated(states, norms, len(seen.hidden), k).sort().values


def _temporal(seen: TokenStates, k: int, settings: PruningSettings) -> Tensor:
    """Keep what changed most since the frame before; with no such frame nothing is known to be static, and all stay.

    VLA-Cache recomputes the tokens of changed patches and takes the others from its cache, so it never chooses
    among equally static ones. Here they follow in a fixed order drawn from ``pruning.seed``, which covers the image
    and is the same for every frame.
    """
    count, device = len(seen.embeddings), seen.embeddings.device
    if seen.similarity is None:
        return torch.arange(count, device=device)
    order = _permutation(count, settings.seed, 0)
    changed = (1.0 - seen.similarity.cpu()[order]).argsort(descending=True, stable=True)[:k]
    return order[changed].sort().values.to(device)


METHODS: Mapping[str, Method] = {
    "ics": Method(
        _by_score(lambda seen, settings: information_contribution(seen.attention, settings.rank)),
        "FlashVLA, arXiv 2505.21200",
        "self-attention output",
    ),
    "ics_hidden": Method(
        _by_score(lambda seen, settings: information_contribution(seen.hidden, settings.rank)),
        "TokenCarve, arXiv 2503.10501",
        "hidden state",
    ),
    "ics_values": Method(
        _by_score(_ics_values),
        "this package, after arXiv 2505.21200",
        "values that layer `pruning.layer` makes, less their mean",
        "the same, of layer 0",
    ),
    "fastv": Method(
        _by_score(_fastv),
        "FastV, arXiv 2403.06764",
        "attention paid by the last prompt token, under full attention by the rows that are read",
        "the same, as layer 0 would pay it",
        needs_attention=True,
        reads_text=True,
    ),
    "divprune": Method(_divprune, "DivPrune, arXiv 2503.02175", "projector output"),
    "dart": Method(
        _dart,
        "DART, arXiv 2502.11494",
        "normed hidden state, norms of the keys",
        "normed embeddings, norms of the keys of layer 0",
        reads_text=True,
    ),
    "temporal": Method(
        _temporal,
        "VLA-Cache, arXiv 2502.02175",
        "pixels of this frame and of the one before",
        "pixels of this frame and of the one before",
        needs_frame=True,
        recordable=False,  # without a frame before it keeps another number of tokens
    ),
    "norm": Method(_by_score(lambda seen, _settings: row_norm(seen.attention)), "control", "self-attention output"),
    "random": Method(_random, "control", "nothing", "nothing", recordable=False),  # drawn on the host each time
}


def check_layer(settings: PruningSettings, depth: int) -> None:
    """Refuse, with :class:`SettingsError`, a layer that a decoder of `depth` layers does not have."""
    if settings.method != "none" and settings.layer >= depth:
        raise SettingsError(
            f"pruning.layer must be below {depth}, the number of this checkpoint's decoder layers, got {settings.layer}"
        )

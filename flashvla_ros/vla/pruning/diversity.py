"""Rules that keep tokens for being unlike others: DivPrune and DART. Neither looks at attention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

DART_PIVOTS = 4  # of the visual tokens, and as many of the text: the published setting


def farthest_from_each_other(tokens: Tensor, k: int) -> Tensor:
    """Choose k rows of tokens [N, d] so that the closest two are far apart (DivPrune, arXiv 2503.02175).

    Distance is 1 - cosine. The first choice is the token whose nearest neighbour is farthest away; each further one
    is the token whose nearest chosen one is farthest away. Returns indices [k] in the order of choice; of equal
    tokens the first is chosen.
    """
    rows = normalize(tokens.float(), dim=1)
    distances = 1.0 - rows @ rows.T
    distances = torch.minimum(distances, distances.T)  # to the last bit: two that are each other's nearest must tie
    nearest = distances.clone().fill_diagonal_(torch.inf).amin(dim=1)
    chosen = torch.empty(k, dtype=torch.long, device=tokens.device)
    for number in range(k):
        index = nearest.argmax(dim=0, keepdim=True)  # [1]: indexing by a single number would make the host wait
        chosen[number : number + 1] = index
        further = distances.index_select(0, index)[0]
        nearest = further if number == 0 else torch.minimum(nearest, further)
        nearest = nearest.index_fill(0, chosen[: number + 1], -torch.inf)
    return chosen


def least_duplicated(states: Tensor, norms: Tensor, count: int, k: int) -> Tensor:
    """Choose k of the first `count` tokens, those least like a few pivots (DART, arXiv 2502.11494).

    Pivots are the four visual and the four text tokens with the largest norm of their keys. Visual pivots stay. Then
    each pivot in turn, visual ones first and in the order of their positions, adds the tokens not yet chosen whose
    cosine with it is least. The released code gives every pivot the same whole number of tokens and so keeps about k;
    here the first pivots take one more, so that exactly k stay.

    Args:
        states: [M, d] hidden states after the decoder's final norm: `count` visual tokens, then those of the text.
        norms: [M] L1 norms of the tokens' keys.
        count: N.
        k: How many are kept.

    Returns:
        Indices [k] in the order of choice.
    """
    visual = norms[:count].argsort(descending=True, stable=True)[: min(DART_PIVOTS, k)]
    text = norms[count:].argsort(descending=True, stable=True)[:DART_PIVOTS] + count
    pivots = torch.cat([visual.sort().values, text.sort().values])
    rows = normalize(states.float(), dim=1)
    cosines = rows[pivots] @ rows[:count].T  # [pivots, N]
    chosen = [visual]
    free = torch.ones(count, dtype=torch.bool, device=states.device)
    free.index_fill_(0, visual, value=False)
    share, rest = divmod(k - len(visual), len(pivots))
    for number, cosine in enumerate(cosines):
        quota = share + (number < rest)
        added = cosine.masked_fill(~free, torch.inf).argsort(stable=True)[:quota]
        free.index_fill_(0, added, value=False)
        chosen.append(added)
    return torch.cat(chosen)

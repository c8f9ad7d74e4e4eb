"""Draft and verify: the last action's tokens as a guess of the next one's, checked in the pass over the prompt.

A step that decodes D tokens greedily reads the decoder's weights D times. Behind the prompt, a draft of D tokens costs
a few more rows of the one pass that is made anyway, and each row says what the model would have chosen after the tokens
before it. Up to the first token that differs, the model's choices are the draft; there, its own choice is taken, and
decoding goes on. So the tokens are those of greedy decoding, whatever the draft was. This is speculative decoding
(Leviathan et al., arXiv 2211.17192) at temperature 0, with the robot's last action as the draft. Accepting near misses,
as Spec-VLA (arXiv 2507.22424) does with a trained draft model, is optional, bounded and counted.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from flashvla_ros.core.types import Draft
from flashvla_ros.vla.action_codec import ActionCodec


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a draft.

    Attributes:
        tokens: Accepted tokens of the draft, then the model's own choice in the place of the first that is wrong.
        accepted: Tokens accepted.
        near: Those of them that are not the model's own choice.
    """

    tokens: tuple[int, ...]
    accepted: int
    near: int


def usable_tokens(draft: Draft | None, count: int, vocabulary: int) -> tuple[int, ...]:
    """Return the draft's first tokens that a model can be run on: at most `count`, each below `vocabulary`."""
    tokens = () if draft is None else draft.tokens[:count].tolist()
    return tuple(itertools.takewhile(lambda token: 0 <= token < vocabulary, tokens))


def judge(drafted: Sequence[int], choices: Sequence[int], draft: Draft, codec: ActionCodec) -> Verdict:
    """Accept tokens up to the first that is wrong.

    Args:
        drafted: [n] tokens that were run.
        choices: [n] the model's choice in the place of each, given the drafted tokens before it.
        draft: How near a miss may be, and how many may be missed.
        codec: Knows which tokens are bins of an action; no other token is near anything.
    """
    one, other = np.asarray(drafted), np.asarray(choices)
    bins = np.where(codec.is_action(one) & codec.is_action(other), np.abs(one - other), np.inf)
    near = accepted = 0
    for distance in np.where(one == other, 0.0, bins).tolist():
        missed = distance > 0
        if distance > draft.accept_bins or near + missed > draft.max_near:
            return Verdict((*drafted[:accepted], choices[accepted]), accepted, near)
        accepted, near = accepted + 1, near + missed
    return Verdict(tuple(drafted), accepted, near)

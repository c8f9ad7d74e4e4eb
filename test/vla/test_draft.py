"""Draft and verify: the tokens of greedy decoding whatever the draft, and near misses within their bounds."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from checkpoints import VOCABULARY, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from test_policy import observation

from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import ModelSettings, PruningSettings
from flashvla_ros.core.types import Draft, Inference
from flashvla_ros.vla.action_codec import ActionCodec
from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy
from flashvla_ros.vla.draft import judge, usable_tokens
from flashvla_ros.vla.pruning.select import METHODS

NONE = PruningSettings(method="none")
SETTINGS = {
    "none": NONE,
    "keep all": PruningSettings(keep_ratio=1.0),
    "no drop": PruningSettings(keep_ratio=0.5, drop=False),
    **{method: PruningSettings(method=method, keep_ratio=0.5) for method in METHODS},
    "layer 1": PruningSettings(keep_ratio=0.25, layer=1),
    "layer 3": PruningSettings(keep_ratio=0.25, layer=3),
}
CODEC = ActionCodec(1024, 256)
LAST = VOCABULARY - 1  # bin 0
ENGINES = ("eager", "static")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module", params=ENGINES)
def policy(request, folder) -> OpenVLAPolicy:
    return OpenVLAPolicy.load(ModelSettings(checkpoint=str(folder), device="cpu", engine=request.param))


def adversarial(greedy: np.ndarray, rng: np.random.Generator) -> dict[str, list[int]]:
    """Drafts that are right up to any place, wrong anywhere, of any length, and of tokens that are no action's."""
    right = greedy.tolist()

    def wrong(token: int) -> int:
        return LAST - (LAST - token + 1 + int(rng.integers(253))) % 255

    drafts = {f"wrong from {place}": right[:place] + [wrong(token) for token in right[place:]] for place in range(4)}
    for place in range(4):
        drafts[f"wrong at {place}"] = [*right[:place], wrong(right[place]), *right[place + 1 :]]
        drafts[f"{place + 1} right"] = right[: place + 1]
        drafts[f"text at {place}"] = [*right[:place], 5, *right[place + 1 :]]
        drafts[f"outside the vocabulary at {place}"] = [*right[:place], 10**6, *right[place + 1 :]]
    drafts |= {"right": right, "longer": [*right, *right], "text": [1, 2, 3, 4], "negative": [-1] * 4, "empty": []}
    drafts |= {f"random {n}": rng.integers(LAST - 254, VOCABULARY + 64, 4).tolist() for n in range(3)}
    return drafts


@pytest.mark.parametrize(
    ("name", "seed"), [*((name, 0) for name in SETTINGS), *itertools.product(("none", "ics"), (1, 2))]
)
def test_no_draft_changes_the_result(policy, name, seed):
    pruning = SETTINGS[name]
    seen = observation(seed, stamp_s=1.0 + seed)
    greedy = policy.infer(Request(seen, pruning))
    for kind, tokens in adversarial(greedy.tokens, np.random.default_rng(seed)).items():
        result = policy.infer(Request(seen, pruning, draft=Draft(np.array(tokens, dtype=np.int64))))
        assert result.tokens.tolist() == greedy.tokens.tolist(), kind
        assert np.array_equal(result.action, greedy.action), kind
        assert greedy.kept is None or np.array_equal(result.kept, greedy.kept), kind
        agreed = int(np.cumprod([a == b for a, b in zip(tokens, greedy.tokens.tolist(), strict=False)] or [0]).sum())
        assert (result.draft_accepted, result.draft_near) == (agreed, 0), kind


def test_instructions_and_drafts_of_other_observations_change_nothing(policy):
    """As in a run: the draft is whatever the last step said, also across a new instruction."""
    last = None
    accepted = 0
    for step in range(24):
        words = ("open the drawer", "pick up the red block, then put it down again", "go")[step // 4 % 3]
        seen = observation(step // 2, words, stamp_s=float(step))
        pruning = SETTINGS["ics"] if step % 3 else NONE
        result = policy.infer(Request(seen, pruning, draft=None if last is None else Draft(last)))
        assert result.tokens.tolist() == policy.infer(Request(seen, pruning)).tokens.tolist()
        last, accepted = result.tokens, accepted + result.draft_accepted
    assert accepted > 0


def test_a_right_draft_needs_no_decoding_step(folder, monkeypatch):
    policy = OpenVLAPolicy.load(ModelSettings(checkpoint=str(folder), device="cpu", engine="eager"))
    greedy = policy.infer(Request(observation(), NONE))
    rows: list[int] = []
    plain = policy.model.run_layers

    def counted(hidden, *rest, **named):
        rows.append(hidden.shape[1])
        return plain(hidden, *rest, **named)

    monkeypatch.setattr(policy.model, "run_layers", counted)
    policy.infer(Request(observation(), NONE, draft=Draft(greedy.tokens)))
    policy.infer(Request(observation(), NONE, draft=Draft(np.array([*greedy.tokens[:3], 1]))))
    policy.infer(Request(observation(), NONE))
    prompt = rows[-4]
    assert rows == [prompt + 3, prompt + 3, prompt, 1, 1, 1]


def test_counts_are_zero_without_a_draft(policy):
    result = policy.infer(Request(observation(), NONE))
    assert (result.draft_tokens, result.draft_accepted, result.draft_near) == (0, 0, 0)


def moved(greedy: Inference, bins: int) -> np.ndarray:
    """The action with every token moved inward by some bins."""
    centre = LAST - 127
    return greedy.tokens + np.where(greedy.tokens > centre, -bins, bins)


def test_near_misses_are_accepted_bounded_and_counted(policy):
    greedy = policy.infer(Request(observation(), NONE))
    for accept_bins, max_near in ((0, 4), (2, 4), (3, 0), (3, 1), (3, 4)):
        result = policy.infer(Request(observation(), NONE, draft=Draft(moved(greedy, 3), accept_bins, max_near)))
        assert result.draft_tokens == 4
        assert result.draft_near <= max_near
        assert result.draft_accepted >= result.draft_near
        if accept_bins < 3 or max_near == 0:
            assert (result.draft_accepted, result.tokens.tolist()) == (0, greedy.tokens.tolist())
        else:
            assert result.draft_near >= 1
            assert result.tokens[0] == moved(greedy, 3)[0]
            assert abs(result.tokens[0] - greedy.tokens[0]) == 3


# The verdict alone.

token = st.integers(LAST - 260, VOCABULARY + 5)
tokens4 = st.lists(token, min_size=1, max_size=7)


@given(tokens4, st.data(), st.integers(0, 20), st.integers(0, 7))
@settings(max_examples=300, deadline=None)
def test_verdict(drafted, data, accept_bins, max_near):
    choices = [token + data.draw(st.just(0) | st.integers(-12, 12)) for token in drafted]
    verdict = judge(drafted, choices, Draft(np.array(drafted), accept_bins, max_near), CODEC)
    differing = [d != c for d, c in zip(drafted, choices, strict=True)]
    assert verdict.near == sum(differing[: verdict.accepted]) <= max_near
    assert list(verdict.tokens[: verdict.accepted]) == drafted[: verdict.accepted]
    for d, c in zip(drafted[: verdict.accepted], choices, strict=False):
        assert d == c or (abs(d - c) <= accept_bins and CODEC.is_action([d, c]).all())
    if verdict.accepted < len(drafted):
        place = verdict.accepted
        assert list(verdict.tokens[place:]) == [choices[place]]
        miss = abs(drafted[place] - choices[place])
        close = miss <= accept_bins and CODEC.is_action([drafted[place], choices[place]]).all()
        assert miss and (not close or verdict.near == max_near)
    else:
        assert len(verdict.tokens) == len(drafted)


def test_without_tolerance_a_near_miss_is_a_miss():
    verdict = judge([LAST, LAST - 9], [LAST, LAST - 10], Draft(np.array([0]), 0, 5), CODEC)
    assert dataclasses.astuple(verdict) == ((LAST, LAST - 10), 1, 0)


def test_what_no_model_can_run_ends_the_draft():
    draft = Draft(np.array([7, 8, 1088, 9]))
    assert usable_tokens(draft, 4, 1088) == (7, 8)
    assert usable_tokens(draft, 1, 2000) == (7,)
    assert usable_tokens(None, 4, 2000) == ()

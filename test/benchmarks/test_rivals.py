"""The rules of others on a tiny policy: where nothing can be saved they are the dense model, to the token."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint

from benchmarks.rivals import __main__ as main
from benchmarks.rivals.efficientvla import FewerLayers
from benchmarks.rivals.l2_gate import L2Gate
from benchmarks.rivals.page import page
from benchmarks.rivals.rule import DENSE, Rule
from benchmarks.rivals.sp_vla import BUFFER, SpeedRule, extrapolated
from benchmarks.rivals.timing import Step, summary, timed
from benchmarks.rivals.vla_cache import CachedTokens, parts_of
from benchmarks.rivals.vla_pruner import NAME, WINDOW, UnionPruner
from flashvla_ros.bench.trace import load_observations
from flashvla_ros.cli.results import read_results
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import ModelSettings, Settings
from flashvla_ros.core.types import Inference
from flashvla_ros.evaluation import jobs, ledger
from flashvla_ros.evaluation.jobs import Record
from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy
from flashvla_ros.vla.pruning.select import METHODS

FRAMES = load_observations("open the drawer")
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> OpenVLAPolicy:
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")
    return OpenVLAPolicy.load(ModelSettings(checkpoint=str(folder), device="cpu", threads=1))


def follow(rule: Rule, frames: list[int]) -> list[tuple[Inference, float]]:
    """What a rule answers to frames one after the other, and the share of a dense step that each costs."""
    previous, found = None, []
    for step, frame in enumerate(frames):
        seen = dataclasses.replace(FRAMES[frame], stamp_s=step / 10)
        previous = rule.infer(Request(seen, DENSE, previous))
        found.append((previous, rule.work.total))
    return found


def dense(policy: OpenVLAPolicy, frame: int) -> np.ndarray:
    return policy.infer(Request(FRAMES[frame], DENSE)).tokens


def test_what_is_cached_of_the_same_frame_is_what_would_be_computed(policy) -> None:
    (first, whole), (second, less), *_ = found = follow(CachedTokens(policy), [0, 0, 0, 5])
    assert np.array_equal(first.tokens, dense(policy, 0)) and np.array_equal(second.tokens, first.tokens)
    assert whole == 1.0 and less < 1.0 and found[2][1] < 1.0


def test_the_cache_does_not_outlive_an_episode(policy) -> None:
    rule = CachedTokens(policy)
    follow(rule, [0, 0])
    ((answer, work),) = follow(rule, [3])
    assert work == 1.0 and np.array_equal(answer.tokens, dense(policy, 3))


def test_layers_with_even_attention_reuse_less_and_rises_are_damped() -> None:
    assert parts_of(torch.tensor([2.0, 1.0, 0.0])) == pytest.approx([0.0, 0.275, 0.275 + 0.55 * 0.725])


def test_a_decoder_that_keeps_all_layers_is_the_dense_one_and_fewer_cost_less(policy) -> None:
    whole, half = FewerLayers(policy, kept=1.0), FewerLayers(policy, kept=0.5)
    ((answer, work),) = follow(whole, [1])
    assert work == 1.0 and np.array_equal(answer.tokens, dense(policy, 1))
    assert len(half.layers) == len(policy.model.layers) // 2 and follow(half, [1])[0][1] < 1.0


def test_the_union_prunes_after_its_window_and_pays_attention_once(policy) -> None:
    rule = UnionPruner(policy)
    found = follow(rule, [0, 1, 2, 3, 4])
    assert [work == 1.0 for _, work in found] == [True] * WINDOW + [False] * 2
    assert np.array_equal(found[2][0].tokens, dense(policy, 2))
    count = rule.size.visual_tokens
    assert len(found[4][0].kept) == count // 2 and len(set(found[4][0].kept)) == count // 2
    assert all(0.0 < float(paid.sum()) < 1.0 for paid in rule._history)
    assert NAME not in METHODS  # the package offers no more than before


def test_the_l2_gate_can_only_alternate(policy) -> None:
    works = [work for _, work in follow(L2Gate(policy), [0] * 40)]
    assert works == [1.0, 1.0] + [0.0, 1.0] * 19


def test_a_straight_line_goes_on_and_stays_in_range(policy) -> None:
    line = np.linspace(0.1, 0.6, BUFFER)[:, None] * np.array([1.0, -1.0, 0.5])
    assert extrapolated(line) == pytest.approx([0.7, -0.7, 0.35], abs=1e-3)
    assert extrapolated(4.0 * line) == pytest.approx([1.0, -1.0, 1.0])


def test_the_model_makes_more_than_half_of_what_is_extrapolated_from(policy) -> None:
    rule = SpeedRule(policy, by_norm=True)
    works = [work for _, work in follow(rule, [0] * 20)]
    assert works[:BUFFER] == [1.0] * BUFFER
    for end in range(BUFFER, len(works)):
        assert works[end] == 1.0 or sum(works[end - BUFFER : end]) > BUFFER / 2


def test_a_mean_step_weights_the_steps_without_the_model_by_how_often_they_come() -> None:
    ran = np.array([True, True, False, True, False, True])
    seconds, plain = np.where(ran, 0.04, 0.001), np.full(6, 0.05)
    found = summary(seconds, ran, plain, 0.25)
    assert (found["model_ms"], found["skip_ms"]) == (40.0, 1.0)
    assert found["step_ms"] == pytest.approx(0.75 * 40.0 + 0.25 * 1.0)
    assert found["speedup"] == pytest.approx(50.0 / 30.25)
    low, high = found["speedup_95"]  # a draw may miss all steps of a kind, and then only the other counts
    assert low <= found["speedup"] <= high


def test_every_rule_is_timed_against_plain_generate_and_the_least_time(policy) -> None:
    def every_second() -> Step:
        seen: list[object] = []

        def step(frame: object) -> tuple[Inference, bool]:
            seen.append(frame)
            return policy.infer(Request(frame, DENSE)), len(seen) % 2 == 1

        return step

    found = timed(policy, {"half": every_second}, FRAMES[:6], {"half": 0.5})
    assert set(found) == {"plain generate", "half"}
    assert found["plain generate"]["speedup"] == 1.0
    assert all(row["over_least"] > 1.0 and row["least_ms"] > 0.0 for row in found.values())


@pytest.mark.parametrize(("lost", "won", "p"), [(94, 0, "1e-28"), (39, 1, "7.5e-11"), (3, 0, "0.25")])
def test_a_p_that_the_file_rounds_to_zero_is_told_as_it_is(lost: int, won: int, p: str) -> None:
    pages = [page(read_results(RESULTS / f"rivals-{name}.json")) for name in ("demo", "plain")]
    assert f"| {lost} / {won}, p = {p} |" in "".join(pages)


def test_the_page_says_how_many_episodes_other_code_and_earlier_runs_have_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, record = (
        [main.Configuration("dense", Settings(), None)],
        Record(*[1] * 5, {}, *[None] * 2, 1.0, 1.0, (1,), (1,)),
    )
    monkeypatch.setattr(jobs, "run_job", lambda _: record)
    with monkeypatch.context() as other:
        other.setattr(ledger, "code_digest", lambda: "other")
        main.play(rows, ["drawer-open"], range(2), tmp_path / "x", "weights")
    _, origins = main.play(rows, ["drawer-open"], range(3), tmp_path / "x", "weights")
    results = read_results(RESULTS / "rivals-demo.json")
    told = page({**results, "meta": results["meta"] | origins})
    assert "of each; 2 of 3 episodes from other code; 2 of 3 episodes from earlier runs. Behind" in told
    assert "of each. Behind" in page(results)

"""A score that is learnt from a recording, in which an unsure action is soon another one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import yaml
from bag_factory import drive, write_bag
from fakes import SPEC, ScriptedPolicy

from flashvla_ros import __main__ as cli
from flashvla_ros.bags import learning
from flashvla_ros.bags.answers import load_once
from flashvla_ros.bags.features import Features
from flashvla_ros.bags.learning import auc, examples, joined, learn
from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import PruningSettings, Settings
from flashvla_ros.gate.memory import GateInput
from flashvla_ros.gate.scene import signature
from flashvla_ros.gate.score import SIGNS
from flashvla_ros.vla.loading import LoadedPolicy


def recording(count: int = 200, seed: int = 0) -> Features:
    """Steady motion; one frame in six is unsure, and from the next on the robot goes elsewhere."""
    rng = np.random.default_rng(seed)
    unsure = rng.random(count) < 1 / 6
    actions, direction = [], np.array([0.4, 0.0, 0.0])
    for index in range(count):
        if index and unsure[index - 1]:
            direction = rng.permutation(direction) * rng.choice([-1.0, 1.0])
        actions.append([[*direction, 1.0]])
    frame = signature({"image": np.zeros((64, 64, 3), dtype=np.uint8)})
    return Features(
        inputs=[GateInput("go", 0.1 * index, frame) for index in range(count)],
        times_ns=np.arange(count),
        resets=[None] * count,
        actions=np.array(actions),
        kept=[np.arange(40, dtype=np.int16)] * count,
        visual_tokens=64,
        pruning=PruningSettings(),
        spec=SPEC,
        worst=[],
        confidences=np.where(unsure, 0.2, 0.95),
    )


def test_what_comes_before_an_off_reuse_is_found():
    known, unseen = (examples(recording(seed=seed), Settings()) for seed in (0, 1))
    weights = np.array(learn(known))
    assert weights[SIGNS.index("confidence")] < 0.0 < weights[SIGNS.index("age")]
    first = unseen.ages == 1
    scores = unseen.signs @ weights[:-1] + weights[-1]
    assert auc(scores[first], unseen.off[first]) > 0.95
    blind = examples(dataclasses.replace(recording(seed=0), confidences=None), Settings())
    assert learning.held_out([known, unseen]) > learning.held_out([blind, blind]) + 0.1


def test_no_reuse_reaches_over_a_break_and_none_is_left_out():
    features, ages = recording(count=20), np.array([1, 2, 3])
    assert np.bincount(examples(features, Settings()).ages)[1:].tolist() == (20 - 1 - ages).tolist()
    stopped = dataclasses.replace(features, resets=[Reason.RESET if index == 10 else None for index in range(20)])
    late, told = list(features.inputs), list(features.inputs)
    for index in range(10, 20):
        late[index] = dataclasses.replace(late[index], stamp_s=late[index].stamp_s + 60.0)
        told[index] = dataclasses.replace(told[index], instruction="stop")
    for broken in (stopped, dataclasses.replace(features, inputs=late), dataclasses.replace(features, inputs=told)):
        assert np.bincount(examples(broken, Settings()).ages)[1:].tolist() == (2 * (10 - 1 - ages)).tolist()


def test_auc_counts_pairs_and_ties_by_half():
    assert auc(np.array([0.1, 0.2, 0.2, 0.3]), np.array([False, True, False, True])) == (1.5 + 2.0) / 4
    assert np.isnan(auc(np.zeros(3), np.zeros(3, dtype=bool)))


def test_nothing_to_tell_apart_is_said():
    steady = dataclasses.replace(recording(), actions=np.full((200, 1, 4), 0.4))
    with pytest.raises(SettingsError, match="0 of 591 possible reuses are off, so nothing tells them apart"):
        learn(joined([examples(steady, Settings())]))


def test_a_score_is_learnt_where_one_recording_alone_has_all_that_is_off():
    steady = dataclasses.replace(recording(), actions=np.full((200, 1, 4), 0.4))
    parts = [examples(recording(), Settings()), examples(steady, Settings())]
    assert len(learn(joined(parts))) == len(SIGNS) + 1
    assert np.isnan(learning.held_out(parts))  # without the first, nothing tells reuses apart


def test_the_command_writes_parameters_that_the_node_takes(tmp_path, monkeypatch, capsys):
    script = recording(60)
    policy = ScriptedPolicy(
        answer=lambda request, made: dataclasses.replace(
            made,
            normalized=script.actions[round(request.observation.stamp_s * 10) % 60],
            confidence=float(script.confidences[round(request.observation.stamp_s * 10) % 60]),
        )
    )
    monkeypatch.setattr("flashvla_ros.bags.answers.load_policy", lambda _: LoadedPolicy(policy))
    load_once.cache_clear()
    files = ["--html", tmp_path / "t.html", "--yaml", tmp_path / "t.yaml", "--score", tmp_path / "score.yaml"]
    grid = ["--delta", "0", "--angle", "20", "--reuse", "1"]
    assert cli.main(["tune", str(write_bag(tmp_path / "bag", drive(60))), *grid, *map(str, files)]) == 0
    load_once.cache_clear()
    assert "of them off; too few recordings to say what it is worth" in capsys.readouterr().out
    values = yaml.safe_load((tmp_path / "score.yaml").read_text())["/**"]["ros__parameters"]["calibration"]
    settings = Settings().with_values({"calibration.score": values["score"]})
    assert settings.calibration.score[SIGNS.index("confidence")] < 0.0

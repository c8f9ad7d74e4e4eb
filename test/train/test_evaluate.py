"""Plans, settings and the table of an evaluation."""

from __future__ import annotations

import pytest

from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.sim.rollout import Outcome
from flashvla_ros.train.collect import FIRST_SEED, plan_episode
from flashvla_ros.train.evaluate import SWITCH_STEPS, parse_setting, plan, summarize
from flashvla_ros.train.publish import results_table


def outcome(seed: int, *, success: bool, steps: int = 50, reused: int = 10) -> Outcome:
    reasons = {"reuse": reused, "mode_off": steps - reused}
    return Outcome(plan("drawer-open", seed, switch=False), success, steps, reused, 0, 0.625, reasons, (0.01,) * steps)


def test_switch_begins_with_the_other_instruction() -> None:
    switched = plan("drawer-close", 4, switch=True)
    assert switched.task.name == "drawer-open"
    assert (switched.instruction, switched.switch_instruction) == ("open the drawer", "close the drawer")
    assert SWITCH_STEPS[0] <= switched.switch_step < SWITCH_STEPS[1]
    assert switched == plan("drawer-close", 4, switch=True)


def test_training_never_sees_a_seed_of_an_evaluation() -> None:
    assert all(
        plan_episode("drawer-open", number, seed).seed >= FIRST_SEED for number in range(50) for seed in range(3)
    )


def test_row_counts_episodes_and_names_the_failures() -> None:
    outcomes = [outcome(0, success=True), outcome(1, success=False, steps=150, reused=30)]
    row = summarize("guarded", "drawer-open", outcomes)
    assert (row["episodes"], row["successes"], row["failed_seeds"]) == (2, 1, [1])
    assert row["reuse_rate"] == pytest.approx(0.2)
    assert row["reasons"] == {"mode_off": 160, "reuse": 40}
    assert row["wilson_95"][0] < 0.5 < row["wilson_95"][1]


def test_table_has_a_line_for_each_mode_and_a_column_for_each_task() -> None:
    rows = [
        summarize(mode, task, [outcome(0, success=True)]) | {"switch": switch}
        for mode in ("dense", "guarded")
        for task, switch in (("drawer-open", False), ("drawer-close", True))
    ]
    lines = results_table(rows).splitlines()
    assert lines[0] == "| mode | drawer-open | then drawer-close | reused steps |"
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["`dense`", "`guarded`"]
    assert all(line.count("1/1") == 2 for line in lines[2:])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("gate.delta=0.9", ("gate.delta", 0.9)), ("gate.mode=off", ("gate.mode", "off")), ("a.b=x=y", ("a.b", "x=y"))],
)
def test_settings_are_json_where_they_can_be(text: str, expected: tuple[str, object]) -> None:
    assert parse_setting(text) == expected


def test_setting_without_a_value_is_refused() -> None:
    with pytest.raises(FlashVLAError, match="name=value"):
        parse_setting("gate.delta")

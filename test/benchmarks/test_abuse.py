"""What the abuse's monitor finds: each promise broken by a recorded sequence, and the same sequence kept."""

from __future__ import annotations

import pytest

from benchmarks.promises import Deed, Done, Heard, Promise, judge, stop_latencies_s

PROMISE = Promise(speed=0.1, step=0.05, image_age_s=1.0, held_s=3.0)
STOP = (0.0, 0.0, 0.0)
MOVE = (0.04, 0.0, 0.0)


def step(time_s, velocity=MOVE, instruction="push", *, age_s=0.1, scale=1.0):
    return Heard(time_s, time_s - age_s, velocity, instruction, scale)


def stop(time_s):
    return Heard(time_s, time_s, STOP)


GIVEN = Done(0.0, Deed.INSTRUCTED, "push")


def rules(commands, *done, samples=()):
    end = Done(max(one.time_s for one in [*commands, *done]), Deed.OTHER, "the end")
    return [one.rule for one in judge(commands, [GIVEN, *done, end], PROMISE, samples)]


def test_an_ordinary_run_breaks_nothing():
    done = [Done(1.25, Deed.PRESSED), Done(2.0, Deed.RESET), Done(2.5, Deed.INSTRUCTED, "pull")]
    commands = [step(1.0), step(1.1, (0.08, 0.0, 0.0)), stop(1.26), step(2.2), step(2.6), step(2.7, STOP, "pull")]
    assert rules(commands, *done) == []


@pytest.mark.parametrize("velocity", [(0.101, 0.0, 0.0), (0.0, -0.2, 0.0), (float("nan"), 0.0, 0.0)])
def test_limits(velocity):
    assert "limits" in rules([step(1.0, velocity)])
    assert rules([step(1.0, (0.1, -0.1, 0.0))]) == []


def test_step_counts_from_the_command_before():
    assert rules([step(1.0, (0.04, 0.0, 0.0)), step(1.1, (-0.02, 0.0, 0.0))]) == ["step"]
    assert rules([step(1.0, (0.04, 0.0, 0.0)), step(1.1, (-0.01, 0.0, 0.0))]) == []
    assert rules([stop(1.0), step(1.1, (0.06, 0.0, 0.0))]) == ["step"]


def test_a_stop_and_a_lower_scale_may_brake_harder_than_a_step():
    fast = [step(1.0, (0.05, 0.0, 0.0)), step(1.1, (0.1, 0.0, 0.0))]
    assert rules([*fast, stop(1.2)]) == []
    assert rules([*fast, step(1.2, STOP)]) == ["step"]
    assert rules([*fast, step(1.2, STOP, scale=0.0)]) == []
    assert rules([*fast, step(1.2, (0.02, 0.0, 0.0), scale=0.2)]) == []
    assert rules([*fast, step(1.2, (0.02, 0.0, 0.0))]) == ["step"]
    assert rules([*fast, step(1.2, (-0.04, 0.0, 0.0), scale=0.2)]) == ["step"]  # 0.1 at a fifth is 0.02
    assert rules([step(1.0, scale=0.2), step(1.1, (-0.02, 0.0, 0.0))]) == ["step"]  # a higher one excuses nothing


@pytest.mark.parametrize(
    ("begin", "end"), [(Deed.PRESSED, Deed.RESET), (Deed.DRY, Deed.WET), (Deed.ASLEEP, Deed.AWAKE)]
)
def test_silence_lasts_until_what_ends_it(begin, end):
    assert rules([step(1.0), step(1.2)], Done(1.1, begin)) == [begin]
    assert rules([step(1.0), step(1.12)], Done(1.1, begin)) == []  # it may take 50 ms
    assert rules([step(1.0), stop(1.11), step(1.12)], Done(1.1, begin)) == [begin]  # though not after the stop action
    assert rules([step(1.0), stop(1.11), stop(5.0)], Done(1.1, begin)) == []
    assert rules([step(1.0), stop(1.11), step(2.2)], Done(1.1, begin), Done(2.1, end)) == []
    other = Deed.WET if end is Deed.RESET else Deed.RESET
    assert rules([step(1.0), stop(1.11), step(2.2)], Done(1.1, begin), Done(2.1, other)) == [begin]
    assert rules([step(1.0), step(2.2)], Done(1.1, begin), Done(2.0, begin), Done(2.1, end)) == []


def test_time_that_the_process_could_not_use_does_not_count():
    frozen = [Done(1.05, Deed.FROZEN), Done(1.1, Deed.PRESSED), Done(2.0, Deed.THAWED)]
    assert rules([step(1.0), step(2.02)], *frozen) == []
    assert rules([step(1.0), step(2.2)], *frozen) == [Deed.PRESSED]
    assert rules([step(1.0), step(1.25)], Done(1.1, Deed.PRESSED), samples=[(1.2, 0.15)]) == []
    assert rules([step(1.0), step(1.25)], Done(1.1, Deed.PRESSED), samples=[(0.5, 0.15)]) == [Deed.PRESSED]


def test_what_was_sent_to_a_stopped_process_is_blamed_and_explained():
    done = [GIVEN, Done(1.05, Deed.FROZEN), Done(1.1, Deed.PRESSED), Done(2.0, Deed.THAWED), Done(3.0, Deed.OTHER)]
    [found] = judge([step(1.0), step(2.2)], done, PROMISE)
    assert found.rule == Deed.PRESSED
    assert "sent during SIGSTOP" in found.text


def test_an_instruction_that_was_replaced_is_not_answered():
    second = Done(1.05, Deed.INSTRUCTED, "pull")
    assert rules([step(1.0), step(1.2)], second) == []  # it may take half a second
    assert rules([step(1.0), step(1.7)], second) == ["instruction"]
    assert rules([step(1.0), step(1.2, MOVE, "pull"), step(1.3)], second) == ["instruction"]  # though not once answered
    assert rules([step(1.0, MOVE, "jump")]) == ["instruction"]
    repeated = Done(1.05, Deed.INSTRUCTED, "push")
    assert rules([step(1.0), step(1.7)], repeated) == []


def test_a_stop_action_does_not_move():
    assert rules([stop(1.0)._replace(velocity=MOVE)]) == ["stop"]


def test_an_image_has_an_age_also_after_a_freeze():
    assert rules([step(1.0, age_s=1.04)]) == []
    assert rules([step(1.0, age_s=1.1)]) == ["image"]
    assert rules([step(3.0, age_s=1.1)], Done(2.0, Deed.FROZEN), Done(2.9, Deed.THAWED)) == ["image"]
    assert rules([step(1.0, age_s=-100.0)]) == []  # a camera whose clock is ahead
    assert rules([step(1.0, STOP, age_s=5.0)]) == []


def test_a_command_that_moves_has_an_age():
    end = Done(9.0, Deed.OTHER, "the end")
    assert rules([step(1.0), step(4.2)]) == ["held"]
    assert rules([step(1.0)], end) == ["held"]
    assert rules([step(1.0), stop(3.9)], end) == []
    frozen = [Done(1.1, Deed.FROZEN), Done(4.1, Deed.THAWED)]
    assert rules([step(1.0), stop(4.2)], *frozen) == []


def test_a_violation_comes_with_what_went_before_it():
    done = [GIVEN, Done(1.1, Deed.PRESSED), Done(2.0, Deed.OTHER)]
    [found] = judge([step(1.0), stop(1.11), step(1.2), step(2.1)], done, PROMISE, [(1.0, 0.02)])
    assert (found.rule, found.time_s) == (Deed.PRESSED, 1.2)
    assert "after a stop action" in found.text
    context = "\n".join(found.context)
    assert "1.100 emergency stop pressed\n1.110 command +0.0000 +0.0000 +0.0000" in context
    assert "20 ms" in context


def test_the_time_to_a_stop_is_that_of_presses_that_met_motion():
    done = [Done(1.1, Deed.PRESSED), Done(1.5, Deed.PRESSED), Done(2.1, Deed.PRESSED)]
    commands = [step(1.0), stop(1.13), step(2.0), stop(2.14)]
    assert stop_latencies_s(commands, done) == pytest.approx([0.03, 0.04])

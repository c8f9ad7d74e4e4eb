"""Two arms on one machine, each with a policy node in its namespace: what happens to one does not touch the other."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from surroundings import PERIOD_S, Surroundings

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def arms(tmp_path) -> Iterator[tuple[Surroundings, Surroundings]]:
    started = []
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
        started.append(Surroundings(tmp_path / name, f"/{name}", **{"node.instruction": f"push {name}"}))
    yield started[0], started[1]
    for around in started:
        around.close()


def run_both(left: Surroundings, right: Surroundings, duration_s: float) -> None:
    """Let time pass for both; their cameras go on."""
    end_s = time.monotonic() + duration_s
    while time.monotonic() < end_s:
        for around in (left, right):
            around.spin(PERIOD_S / 4)


def test_each_answers_its_own_camera_and_a_fault_of_one_does_not_touch_the_other(arms):
    left, right = arms
    for around in arms:
        around.run()
    run_both(left, right, 5 * PERIOD_S)
    assert {gate.instruction for gate in left.gates} == {"push left"}
    assert {gate.instruction for gate in right.gates} == {"push right"}
    names = {name for name, _ in left.node.get_topic_names_and_types()}
    assert {f"/{arm}/{topic}" for arm in ("left", "right") for topic in ("image", "command", "flashvla/gate")} <= names

    left.wait_for_steps()  # it stopped while only the other one's camera was being served, if the machine was slow
    began_s = time.time()
    left.unplug()
    left.until(lambda: left.stops(began_s), "the stop action")
    run_both(left, right, 5 * PERIOD_S)
    right.wait_for_steps()
    assert right.state().state == "running"
    assert (left.state().stop_reason.partition(":")[0], len(left.stops(began_s))) == ("image_timeout", 1)

    left.process.kill()
    left.process.wait()
    right.wait_for_steps()
    right.wait_for_steps()
    assert right.state().state == "running"

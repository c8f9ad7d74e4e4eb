"""Every cause of a stop: in status and /diagnostics while it lasts, in the log once, and it ends as declared."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fakes import ScriptedPolicy
from policy_bench import PolicyBench
from rcl_interfaces.msg import Log
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from flashvla_ros.core.policy import Request
from flashvla_ros.core.reasons import EMPTYING, Reason
from flashvla_ros.core.types import Inference

OK, WARN, ERROR = b"\x00", b"\x01", b"\x02"
LONG_S = 30.0  # what the test does not want to happen, does not


class Misbehaving(ScriptedPolicy):
    """Answers as `mode` says; a model that hangs does so until `go_on` is set."""

    def __init__(self, **script: Any) -> None:
        super().__init__(**script, answer=self._misbehave)
        self.mode = ""
        self.distract: Callable[[], object] = lambda: None
        self.go_on = threading.Event()

    def _misbehave(self, _: Request, answer: Inference) -> Inference:
        self.distract()
        if self.mode == "raise":
            raise RuntimeError("the model is out of order")
        if self.mode == "hang":
            self.go_on.wait(60)
        if self.mode == "nan":
            return dataclasses.replace(answer, action=answer.action * np.nan)
        if self.mode == "shake":
            return dataclasses.replace(answer, action=np.abs(answer.action) * (-1) ** len(self.requests))
        if self.mode == "size":
            return dataclasses.replace(answer, action=answer.action[:, :-1])
        return answer


@dataclasses.dataclass(frozen=True)
class Case:
    """How a cause begins, what goes on while it lasts, and what ends it."""

    cause: Reason
    begin: Callable[[PolicyBench], Any]
    end: Callable[[PolicyBench], Any] = lambda _: None
    words: str = ""
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    level: int = 0  # of the pictures shown while it lasts; 0: none are
    next_reason: str = ""


def set_to(name: str, value: Any) -> Callable[[PolicyBench], None]:
    def act(bench: PolicyBench) -> None:
        assert bench.set(name, value).successful

    return act


def misbehave(mode: str) -> Callable[[PolicyBench], None]:
    def act(bench: PolicyBench) -> None:
        bench.policy.mode = mode
        bench.show()

    return act


def behave(bench: PolicyBench) -> None:
    bench.policy.mode = ""
    bench.policy.go_on.set()


def press(bench: PolicyBench) -> None:
    for _ in range(3):
        bench.emergency_stop.publish(Bool(data=True))


def release(bench: PolicyBench) -> None:
    assert bench.call(bench.reset, Trigger.Request()).success


def show_the_same(bench: PolicyBench) -> None:
    set_to("control.frozen_image_s", 0.1)(bench)

    def stopped() -> list[str]:
        bench.show(100)
        bench.spin(0.03)
        return bench.logged("stopped, ")

    bench.until(stopped, "the stop")


def distract(bench: PolicyBench) -> None:
    """New instructions faster than the model answers: no step comes to its end."""
    set_to("control.image_timeout_s", 3.0)(bench)
    set_to("control.inference_timeout_s", 0.1)(bench)
    bench.policy.distract = bench.node._runner.worker.discard

    def stopped() -> list[str]:
        bench.show()
        bench.spin(0.03)
        return bench.logged("stopped, ")

    bench.until(stopped, "the stop")
    set_to("control.image_timeout_s", LONG_S)(bench)
    set_to("control.inference_timeout_s", LONG_S)(bench)


def attend(bench: PolicyBench) -> None:
    bench.policy.distract = lambda: None


def hang(bench: PolicyBench) -> None:
    misbehave("hang")(bench)
    set_to("control.inference_timeout_s", 0.1)(bench)


def stop_hanging(bench: PolicyBench) -> None:
    set_to("control.inference_timeout_s", LONG_S)(bench)
    behave(bench)


def follow(bench: PolicyBench) -> None:
    bench.measure(elbow=1.0)
    release(bench)


ELBOW = {
    "command__type": "Float64MultiArray",
    "action__names": ["elbow"],
    "action__kinds": ["absolute"],
    "control__max_deviation": [0.2],
    "control__deviation_time_s": 0.1,
    "control__state_timeout_s": LONG_S,
}
CASES = [
    Case(
        Reason.IMAGE_TIMEOUT,
        set_to("control.image_timeout_s", 0.1),
        set_to("control.image_timeout_s", LONG_S),
        "no image of camera 'image' for ",
    ),
    Case(
        Reason.FROZEN_IMAGE,
        show_the_same,
        set_to("control.frozen_image_s", 0.0),
        "camera 'image' has sent the same picture for ",
        level=100,
    ),
    Case(Reason.INFERENCE_TIMEOUT, hang, stop_hanging, "no action after ", level=100),
    Case(Reason.COMMAND_TIMEOUT, distract, attend, "no new command for ", level=100),
    Case(Reason.FAULT, misbehave("raise"), behave, "RuntimeError: the model is out of order", level=100),
    Case(Reason.FAULT, misbehave("nan"), behave, "not finite in ['x', 'y', 'z', 'gripper']", level=100),
    Case(Reason.FAULT, misbehave("size"), behave, "[1, 3]", level=100),
    Case(Reason.EMERGENCY_STOP, press, release, "asked for on /emergency_stop", level=100, next_reason="reset"),
    Case(
        Reason.DEVIATION,
        lambda bench: bench.measure(elbow=0.5),
        follow,
        "elbow is at 0.5 and was commanded to 1",
        parameters=ELBOW,
        level=100,
        next_reason="reset",
    ),
    Case(Reason.DRY_RUN, set_to("control.dry_run", True), words="control.dry_run is true"),
    Case(
        Reason.DEACTIVATED,
        lambda bench: bench.node.trigger_deactivate(),
        lambda bench: bench.node.trigger_activate(),
        "deactivated",
        level=100,
        next_reason="start",
    ),
]


def test_no_cause_is_left_out():
    # START stops nothing, a reset has test_worker.py, the guard's death needs a guard (test/system/test_guard.py), and
    # the stop of a monitor ends with the next step.
    assert {case.cause for case in CASES} == EMPTYING - {Reason.START, Reason.RESET, Reason.GUARD, Reason.MONITOR}


def test_a_policy_that_shakes_is_warned_of_and_stopped_where_that_is_asked_for():
    policy = Misbehaving()
    calm = {"control__image_timeout_s": LONG_S, "control__inference_timeout_s": LONG_S, "monitor__window_s": 60.0}
    bench = PolicyBench(policy, **calm, gate__mode="off", monitor__max_reversals=0.5).start()
    try:
        policy.mode = "shake"
        for _ in range(6):
            bench.step()
        assert bench.log_line("the policy may be lost: ") == (
            "the policy may be lost: reversals 1 (monitor.max_reversals is 0.5)"
        )
        bench.report()
        [entry] = bench.diagnostics[-1].status
        assert entry.level == WARN
        assert {value.key: value.value for value in entry.values}["monitor.reversals"] == "1"
        set_to("monitor.stop", True)(bench)
        bench.step()
        assert bench.log_line("stopped, ").startswith("stopped, monitor: reversals 1")
        bench.step()
        assert bench.gates[-1].epoch == 1
        assert bench.report().state == "running"
    finally:
        bench.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.cause}: {case.words[:20]}")
def test_a_stop_is_told_everywhere_once_and_ends(case):
    policy = Misbehaving(actions=[[1.0]], scale=1.0) if case.parameters else Misbehaving()
    calm = {"control__image_timeout_s": LONG_S, "control__inference_timeout_s": LONG_S}
    bench = PolicyBench(policy, **calm, **case.parameters).start()
    try:
        if case.parameters:
            bench.measure(elbow=1.0)
        bench.step()
        assert (bench.report().state, bench.diagnostics[-1].status[0].level) == ("running", OK)
        case.begin(bench)
        line = bench.log_line("stopped, ")
        for _ in range(8):  # a stop that lasts is not told again
            if case.level:
                bench.show(case.level)
            bench.spin(0.03)
        status = bench.report()
        assert (status.state, status.stops) == ("stopped", 1)
        assert status.stop_reason.startswith(f"{case.cause}: ")
        assert case.words in status.stop_reason
        [entry] = bench.diagnostics[-1].status
        assert (entry.level, entry.message) == (ERROR, f"stopped: {status.stop_reason}")
        assert line == bench.log_line("stopped, ") == f"stopped, {status.stop_reason}"
        severity = Log.INFO if case.cause in (Reason.DRY_RUN, Reason.DEACTIVATED) else Log.ERROR
        assert [log.level for log in bench.logs if log.msg == line] == [severity]
        steps = len(bench.gates)
        case.end(bench)
        shown = bench.show(101)  # a picture that waited while the model hung may be answered first
        bench.until(lambda: bench.gates[-1].header.stamp == shown.stamp, "the step of the last picture")
        assert bench.gates[steps].reason == (case.next_reason or case.cause)
        status = bench.report()
        assert (status.state, status.stop_reason) == ("running", "")
        assert bench.diagnostics[-1].status[0].level == OK
    finally:
        policy.go_on.set()
        bench.close()

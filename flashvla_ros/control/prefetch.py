"""The next chunk is asked for while the present one runs (``control.prefetch``), and begins when its answer is there.

Which observation is asked about follows from observations and settings alone. When the answer comes does not, so a
recording says it: a fresh step whose age is above 0 took an answer, and a replay takes it at the same step.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future

from flashvla_ros.control import safety
from flashvla_ros.core.chunk import elapsed_rows
from flashvla_ros.core.policy import Policy, Request
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import PruningSettings, Settings
from flashvla_ros.core.types import ActionSpec, Inference
from flashvla_ros.gate.decision import GateDecision, GateMeasurements, may_follow, report
from flashvla_ros.gate.memory import GateInput, GateMemory


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """A run of the model that nobody waits for yet.

    Attributes:
        source: What it is run on.
        pruning: In force when it was asked for.
        reason: Why it is run.
        answer: Its result, or what went wrong.
        since_s: When it began, on the stepper's clock.
    """

    source: GateInput
    pruning: PruningSettings
    reason: Reason
    answer: Future[Inference]
    since_s: float


class Model:
    """A policy that one caller at a time runs, now or meanwhile; each result says how long it took.

    Args:
        policy: Behind its port.
        spec: What the dimensions of its actions mean.
        clock: Monotonic seconds.
        executor: Runs what :meth:`ask` asks for; None: it is run at once.
    """

    def __init__(self, policy: Policy, spec: ActionSpec, clock: Callable[[], float], executor: Executor | None) -> None:
        safety.check_size(policy.action_size, spec)
        self._policy, self._spec, self._clock = policy, spec, clock
        self._executor = executor
        self._one = threading.Lock()

    def run(self, request: Request) -> Inference:
        """Run the model, after whatever runs by then.

        Raises:
            ActionError: Its action is not finite or not of the declared size.
        """
        with self._one:
            started_s = self._clock()
            inference = self._policy.infer(request)
            elapsed_s = self._clock() - started_s
        safety.check(inference, self._spec)
        return dataclasses.replace(inference, elapsed_s=elapsed_s)

    def ask(self, request: Request) -> Future[Inference]:
        """Run the model meanwhile."""
        if self._executor is not None:
            return self._executor.submit(self.run, request)
        answer: Future[Inference] = Future()
        try:
            answer.set_result(self.run(request))
        except Exception as error:  # noqa: BLE001 - whoever takes the answer gets it
            answer.set_exception(error)
        return answer

    def close(self, wait_s: float) -> bool:
        """Run nothing more; False where the policy is still in use after `wait_s`."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
        idle = self._one.acquire(timeout=wait_s)
        if idle:
            self._one.release()
        return idle


@dataclasses.dataclass(frozen=True, eq=False)
class Ahead:
    """What becomes of a step while chunks may be asked for ahead.

    Attributes:
        decision: The gate's, or that the last chunk is followed meanwhile.
        ask: Why the model is to be asked now, and the last chunk followed; None: it is not.
        taken: Whose answer begins at this step.
    """

    decision: GateDecision
    ask: Reason | None = None
    taken: Asked | None = None

    @classmethod
    def of(
        cls,
        decision: GateDecision,
        memory: GateMemory,
        measured: GateMeasurements,
        asked: Asked | None,
        settings: Settings,
        answered: bool | None,
    ) -> Ahead:
        """Return what becomes of a step, with the run of the model under way, which is `asked`.

        Whether it is `answered` a recording says; None: see.
        """
        last = memory.last
        if last is None or not may_follow(memory, measured, settings.gate):
            return cls(decision)  # an answer under way is to what was there before
        lasts = 1 < len(last.motion) > elapsed_rows(measured.age_s, last.dt_s)
        meanwhile = report(memory, measured, Reason.PREFETCH, settings.gate)
        if asked is None:
            ask = settings.control.prefetch > 0 and lasts and not decision.reuse
            return cls(meanwhile, ask=decision.reason) if ask else cls(decision)
        if lasts and not (asked.answer.done() if answered is None else answered):
            return cls(meanwhile)
        age_s = last.source.stamp_s + measured.age_s - asked.source.stamp_s
        if elapsed_rows(age_s, last.dt_s) >= len(asked.answer.result().action):
            return cls(report(memory, measured, Reason.CHUNK_END, settings.gate))  # it has ended before it came
        return cls(dataclasses.replace(decision, reason=asked.reason, age_s=age_s, reused_in_a_row=0), taken=asked)

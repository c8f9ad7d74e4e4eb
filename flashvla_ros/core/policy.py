"""The one port between the control loop and any model, local, remote or recorded."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from flashvla_ros.core.settings import PruningSettings
from flashvla_ros.core.types import Draft, Inference, Observation


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """All that one inference depends on.

    Attributes:
        observation: What the robot sees.
        pruning: In force at this step.
        previous: The last fresh result since the last reset; None where there is none.
        draft: A guess of the action's tokens that may save time; with ``accept_bins`` 0 it never changes the action.
    """

    observation: Observation
    pruning: PruningSettings
    previous: Inference | None = None
    draft: Draft | None = None


class Policy(Protocol):
    """A model that turns an observation into a chunk of actions."""

    @property
    def action_size(self) -> int:
        """D, the number of action dimensions."""
        ...

    def infer(self, request: Request) -> Inference:
        """Run the model once.

        A policy keeps nothing between calls that a result depends on: what may carry over is part of the request, so
        that the same request gives the same result in a replay.

        Raises:
            ObservationError: The policy cannot use this observation.
        """
        ...

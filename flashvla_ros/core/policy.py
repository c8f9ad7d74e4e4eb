"""The one port between the control loop and any model, local, remote, recorded or timed."""

from __future__ import annotations

from typing import Protocol

from flashvla_ros.core.settings import PruningSettings
from flashvla_ros.core.types import Draft, Inference, Observation


class Policy(Protocol):
    """A model that turns an observation into a chunk of actions.

    Implementations raise :class:`flashvla_ros.core.errors.ObservationError` for an observation they cannot use.
    """

    @property
    def action_size(self) -> int:
        """D, the number of action dimensions."""
        ...

    @property
    def visual_tokens(self) -> int:
        """N, the number of visual tokens before pruning."""
        ...

    def infer(
        self,
        observation: Observation,
        pruning: PruningSettings,
        previous: Inference | None = None,
        draft: Draft | None = None,
    ) -> Inference:
        """Run the model on one observation.

        A policy keeps nothing between calls that a result depends on: what may carry over comes in as `previous` and
        `draft`, so that a replay which hands in the same gets the same.

        Args:
            observation: What the robot sees.
            pruning: In force at this step.
            previous: The last fresh result since the last reset; None where there is none.
            draft: A guess of the action's tokens that may save time; with ``accept_bins`` 0 it never changes the
                action. A policy without tokens ignores it.
        """
        ...

    def reset(self) -> None:
        """Forget everything carried over from earlier observations."""
        ...

"""Errors of the simulated robot that a user can mend."""

from flashvla_ros.core.errors import FlashVLAError


class SimulationError(FlashVLAError):
    """A task does not exist, rendering is impossible on this machine, or an episode was asked for something absurd."""

"""Errors that a user can mend. Each message is one line that names the culprit and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, name: str, known: Iterable[str], pages: str = "") -> str:
    """Return the line for a name that is not among those `known`, with the names that are close to it.

    Where none is close it has all of them, or the `pages` of the documentation that list them.
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3)
    hint = f"{pages} list them" if pages and not close else f"did you mean {', '.join(close or names)}?"
    return f"there is no {kind} {name!r}; {hint}"


class FlashVLAError(Exception):
    """Root of every error raised on purpose; the command line prints it and exits with code 2."""


class SettingsError(FlashVLAError):
    """A parameter is unknown, of the wrong type, out of range, or at odds with another."""


class CheckpointError(FlashVLAError):
    """A checkpoint folder is missing, incomplete, or of another architecture."""


class ObservationError(FlashVLAError):
    """An image or instruction cannot be used; the step is dropped and the robot keeps its safe state."""


class ActionError(FlashVLAError):
    """The policy's action is not finite or not of the declared size; the robot is stopped."""


class RemoteError(FlashVLAError):
    """A policy server cannot be reached, or what it answers cannot be used; the robot is stopped."""


class BagError(FlashVLAError):
    """A recording cannot be read, or lacks what was asked of it."""


class SimulationError(FlashVLAError):
    """A task does not exist, rendering is impossible on this machine, or an episode was asked for something absurd."""

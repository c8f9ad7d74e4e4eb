"""The architectures by their parameter's name, and which of them a folder is."""

from __future__ import annotations

from collections.abc import Mapping

from flashvla_ros.core.paths import checkpoint_folder
from flashvla_ros.core.settings import ModelSettings
from flashvla_ros.vla.arch.base import Architecture
from flashvla_ros.vla.arch.oft.policy import OFT
from flashvla_ros.vla.arch.openvla.policy import OPENVLA
from flashvla_ros.vla.arch.univla.policy import UNIVLA
from flashvla_ros.vla.checkpoint import Progress, check_folder
from flashvla_ros.vla.step import VLAPolicy

# The first that recognises a folder is taken, so one without marks of its own stands last.
ARCHITECTURES: Mapping[str, Architecture] = {"openvla_oft": OFT, "univla": UNIVLA, "openvla": OPENVLA}


def architecture_of(settings: ModelSettings) -> Architecture:
    """Return what ``model.architecture`` names; with ``auto`` what the files of a whole checkpoint say."""
    if settings.architecture != "auto":
        return ARCHITECTURES[settings.architecture]
    check_folder(folder := checkpoint_folder(settings.checkpoint))
    return next(found for found in ARCHITECTURES.values() if found.recognises(folder))


def load(settings: ModelSettings, progress: Progress | None = None) -> VLAPolicy:
    """Load the checkpoint that `settings` name, or the demo policy, onto its device.

    Progress goes to the log unless `progress` takes it.

    Raises:
        CheckpointError: The folder is not a complete checkpoint, or does not fit into memory.
        SettingsError: This machine lacks the device or attention implementation.
    """
    return architecture_of(settings).load(settings, progress)

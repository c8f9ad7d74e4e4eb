"""The parameters by themselves: whether the node would take them, by the rules that it goes by at configure."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from flashvla_ros.control.command_rules import check_command
from flashvla_ros.control.limits import unlimited
from flashvla_ros.control.urdf import limits_of, read_urdf
from flashvla_ros.core import extras
from flashvla_ros.core.certificate import certification
from flashvla_ros.core.errors import CheckpointError, SettingsError
from flashvla_ros.core.provenance import checkpoint_fingerprint
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionSpec
from flashvla_ros.doctor.finding import Finding, Level, ok


def check_settings(settings: Settings) -> Iterator[Finding]:
    """Look at the pictures' decoder, at what the command can carry, and at the limits."""
    if settings.camera.compressed and importlib.util.find_spec("simplejpeg") is None:
        text = "a JPEG whose data is damaged is shown, and grey where the data ends"
        yield Finding("pictures", Level.WARNING, text, f"{extras.remedy('camera')}: such pictures are refused")
    try:
        spec = ActionSpec.of(settings.action)
        check_command(settings.command.type, spec)
    except SettingsError as error:
        yield Finding.failure_of("command", error)
        return
    yield ok("command", f"{settings.command.type} carries {', '.join(spec.names)}")
    try:
        yield _limits(settings, spec)
    except SettingsError as error:
        yield Finding.failure_of("limits", error)


def check_certificate(settings: Settings, folder: Path) -> Finding:
    """Say whether the settings are certified on a folder of weights; a warning only where a certificate is named."""
    try:
        from flashvla_ros.vla.backend import Backend  # brings torch, which may be what is missing

        dtype = Backend.resolve(settings.model).dtype_name
        asked = {"model.checkpoint": str(folder), "model.remote": "", "model.dtype": dtype}
        certified, why = certification(settings.with_values(asked), checkpoint_fingerprint(folder))
    except (CheckpointError, SettingsError) as error:
        return Finding.failure_of("certificate", error)
    if certified or not settings.evidence.certificate:
        return ok("certificate", why)
    return Finding("certificate", Level.WARNING, why, "run flashvla-ros certify, or use the settings it names")


def _limits(settings: Settings, spec: ActionSpec) -> Finding:
    limits, open_ = settings.limits, list[str]()
    if limits.robot_description:
        return ok("limits", "from the topic robot_description, which the node reads at configure")
    if limits.urdf:
        values, open_ = limits_of(read_urdf(limits.urdf), limits.urdf, spec)
        limits = settings.with_values(values).limits
    if free := unlimited(limits, spec):
        open_.append(f"nothing bounds {', '.join(free)}: whatever the policy says is commanded")
    if open_:
        remedy = "set limits.lower and limits.upper, or give a URDF that has limits and speeds"
        return Finding("limits", Level.WARNING, "; ".join(open_), remedy)
    return ok("limits", "every dimension is bounded")

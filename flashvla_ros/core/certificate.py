"""A certificate: what ``flashvla-ros certify`` has found of one setting of one checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flashvla_ros
from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.files import read_json, write_text
from flashvla_ros.core.parameter import Value
from flashvla_ros.core.paths import checkpoint_folder, user_path
from flashvla_ros.core.provenance import CERTIFICATE
from flashvla_ros.core.settings import Settings, find

# How the policy is run: bringup takes it from a checkpoint's certificate where nobody says otherwise.
_SHIPPED = (
    *("pruning.", "decode.", "gate.", "control.blend", "control.prefetch"),
    *("model.center_crop", "model.sampling", "model.unnorm_key", "model.images", "model.proprio"),
    *("model.preset", "model.chunk_size", "model.action_bounds"),
)
# What else decides which action is commanded, apart from the robot's own limits, cameras and rate. Whoever asks has
# resolved model.dtype: auto is another type on another device.
_COMPARED = (*_SHIPPED, "model.architecture", "model.dtype", "action.", "control.speed_scale", "control.ramp_s")
_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("name", "checkpoint"), str),
    **dict.fromkeys(("tasks", "failures"), list),
    **dict.fromkeys(("risk", "confidence", "bound"), (int, float)),
    **dict.fromkeys(("episodes", "induced"), int),
    "settings": dict,
}


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What was played, and what follows from it.

    Attributes:
        name: Of the setting, such as ``guarded``.
        checkpoint: Fingerprint of the weights.
        settings: The values of the parameters that are compared.
        tasks: Played, each as often as another.
        tasks_digest: Of tasks, seeds and the limits of an episode.
        version: Of the package.
        code: Digest of the code that played the episodes.
        episodes: n, starts that were played.
        induced: k, those that the reference mastered and this setting did not.
        risk: Largest share of induced failures that was allowed.
        confidence: With which it is not exceeded.
        bound: Upper end of the exact one-sided interval of that share.
        device: What computed it.
        failures: Task and seed of each induced failure.
    """

    name: str
    checkpoint: str
    settings: Mapping[str, Any]
    tasks: tuple[str, ...]
    tasks_digest: str
    version: str
    code: str
    episodes: int
    induced: int
    risk: float
    confidence: float
    bound: float
    device: str
    failures: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Certificate:
        """Read a certificate.

        Raises:
            SettingsError: The file cannot be read, or is none.
        """
        content = read_json(path, SettingsError)
        try:
            if wrong := [name for name, kind in _TYPES.items() if not isinstance(content[name], kind)]:
                raise ValueError(f"its {wrong[0]} is {content[wrong[0]]!r}")
            found = cls(**content | {name: tuple(map(str, content[name])) for name in ("tasks", "failures")})
            if not 0 <= found.induced < found.episodes or not 0.0 <= found.bound <= found.risk < 1.0:
                raise ValueError("its bound exceeds its risk")
            if not 0.0 < found.confidence < 1.0 or not f"{found.name}{found.tasks}".isprintable():
                raise ValueError("its confidence or its name is none")
        except (KeyError, TypeError, ValueError) as error:
            raise SettingsError(f"{path} is no certificate of flashvla-ros certify: {error}") from error
        return found

    def write(self, path: Path) -> None:
        """Write it, whole or not at all."""
        write_text(path, json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    def verdict(self, settings: Settings, checkpoint: str) -> tuple[bool, str]:
        """Say whether `settings` on the weights with this fingerprint are certified, and by what or why not."""
        if checkpoint != self.checkpoint:
            return False, f"not certified: the certificate is of another checkpoint ({self.checkpoint[:12]})"
        if self.version != flashvla_ros.__version__:
            return False, f"not certified: the certificate is of version {self.version} of this package"
        now = compared(settings)
        if unsaid := now.keys() - self.settings.keys():
            return False, f"not certified: the certificate does not say {min(unsaid)}: certify again"
        changed = [name for name, value in now.items() if _plain(value) != _plain(self.settings[name])]
        if changed:
            name, more = changed[0], len(changed) - 1
            others = f" and {more} more" if more else ""
            return False, f"not certified: {name} is {now[name]}, the certificate has {self.settings[name]}{others}"
        return True, (
            f"certified: at most {self.risk:.1%} of episodes fail because of {self.name}, with {self.confidence:.0%} "
            f"confidence ({self.induced} of {self.episodes} did; {', '.join(self.tasks)})"
        )


def compared(settings: Settings) -> dict[str, Value]:
    """Return the parameters that a certificate is about."""
    return {name: value for name, value in settings.values().items() if name.startswith(_COMPARED)}


def find_certificate(settings: Settings) -> Path | None:
    """Return the file that the settings name, else the one in the checkpoint's folder; None where there is none."""
    if settings.evidence.certificate:
        return user_path(settings.evidence.certificate)
    if settings.model.remote:  # whose weights lie elsewhere
        return None
    found = checkpoint_folder(settings.model.checkpoint) / CERTIFICATE
    return found if found.is_file() else None


def shipped(folder: Path) -> dict[str, Value]:
    """Return the settings that the certificate in a checkpoint's folder is about; none where it is of no use here.

    Whatever else it names is left out: a checkpoint must not bring limits and time-outs along.
    """
    try:
        found = Certificate.read(folder / CERTIFICATE).settings
        names = [name for name in found if name.startswith(_SHIPPED)]
        return {name: find(name).parse(find(name).from_yaml(found[name])) for name in names}
    except SettingsError:  # the node says what is wrong with it
        return {}


def certification(settings: Settings, checkpoint: str) -> tuple[bool, str]:
    """Say whether the settings in force are certified, and by what or why not; a file that is no use is a reason."""
    path = find_certificate(settings)
    if path is None:
        return False, "not certified: no certificate (flashvla-ros certify makes one)"
    try:
        return Certificate.read(path).verdict(settings, checkpoint)
    except SettingsError as error:
        return False, f"not certified: {error}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

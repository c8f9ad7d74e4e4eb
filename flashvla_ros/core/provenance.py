"""Which settings, weights and platform a run was made with, as one line of JSON that a topic or a file can carry."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from flashvla_ros.core.errors import CheckpointError, SettingsError
from flashvla_ros.core.files import parse_json
from flashvla_ros.core.settings import Settings

SAMPLED_BLOCKS = 64
BLOCK_BYTES = 64 * 1024
CERTIFICATE, EVALUATION = "certificate.json", "evaluation.json"  # beside a published checkpoint
_ABOUT = (CERTIFICATE, EVALUATION, "README.md")  # say what the other files are worth, so they are none of them


@functools.lru_cache(maxsize=256)
def settings_digest(settings: Settings) -> str:
    """Return 16 hexadecimal digits that two settings share only if every parameter is equal."""
    text = json.dumps(settings.values(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def checkpoint_fingerprint(folder: Path) -> str:
    """Return the SHA-256 of a checkpoint's files, in hexadecimal.

    Names, sizes and contents of the files directly in `folder` count, but not its card, its evaluation, its certificate
    and the ledgers beside them: publishing changes no checkpoint. Of a file larger than 4 MiB, 64 evenly spaced blocks
    of 64 KiB stand for the rest, the first and the last among them: fine-tuning changes weights everywhere, and a node
    must not read 15 GB twice at start.

    Raises:
        CheckpointError: `folder` is not a readable folder with files.
    """
    digest = hashlib.sha256()
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith((".", *_ABOUT)))
        for path in files:
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            _add_file(digest, path)
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {folder}: {error.strerror}") from error
    if not files:
        raise CheckpointError(f"the checkpoint folder {folder} has no files")
    return digest.hexdigest()


def check_outputs(folder: Path, *files: Path | None) -> None:
    """Refuse to write a file that would count as one of the checkpoint's, whose certificate would then be void.

    Raises:
        SettingsError: One of them lies in `folder` under a name that counts.
    """
    for file in filter(None, files):
        if file.resolve().parent == folder.resolve() and not file.name.startswith((".", *_ABOUT)):
            raise SettingsError(f"{file} would count as a file of the checkpoint beside it: write it somewhere else")


def _add_file(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as stream:
        if size <= SAMPLED_BLOCKS * BLOCK_BYTES:
            digest.update(stream.read())
            return
        for block in range(SAMPLED_BLOCKS):
            stream.seek((size - BLOCK_BYTES) * block // (SAMPLED_BLOCKS - 1))
            digest.update(stream.read(BLOCK_BYTES))


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What must be equal for two runs over the same observations to agree bit for bit.

    Attributes:
        settings: Every parameter in force.
        checkpoint: Fingerprint of the checkpoint's files, empty where the policy has none.
        platform: What computed it, such as ``{"device": "NVIDIA H100", "dtype": "bfloat16", "torch": "2.13.0"}``.
    """

    settings: Settings
    checkpoint: str = ""
    platform: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """Return one line of JSON; floats are written so that they read back exactly."""
        return json.dumps(
            {
                "settings_digest": settings_digest(self.settings),
                "checkpoint": self.checkpoint,
                "platform": dict(self.platform),
                "settings": self.settings.values(),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Provenance:
        """Read what :meth:`to_json` wrote; parameters that this version does not know are refused.

        Raises:
            SettingsError: The text is not such a line, or a parameter is unknown or out of range.
        """
        try:
            content = parse_json(text)
            values, platform = dict(content["settings"]), dict(content["platform"])
            checkpoint = str(content["checkpoint"])
        except (ValueError, KeyError, TypeError) as error:
            raise SettingsError(f"not a record of settings: {text[:80]!r}") from error
        return cls(Settings().with_values(values), checkpoint, platform)

"""Which settings, weights and platform a run was made with, as one line of JSON that a topic or a file can carry."""

from __future__ import annotations

import dataclasses
import fnmatch
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
# What loading reads of a folder. Whatever else lies there, such as a card or a table, makes no other checkpoint of it.
_READ = (
    *("*.safetensors", "*.pt", "*.model", "*config.json", "*.index.json", "tokenizer.json"),
    *("added_tokens.json", "special_tokens_map.json", "dataset_statistics.json"),
)


@functools.lru_cache(maxsize=256)
def settings_digest(settings: Settings) -> str:
    """Return 16 hexadecimal digits that two settings share only if every parameter is equal."""
    text = json.dumps(settings.values(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def checkpoint_fingerprint(folder: Path) -> str:
    """Return the SHA-256 of a checkpoint's files, in hexadecimal.

    Names, sizes and contents of the files that loading reads count. Of a file larger than 4 MiB, 64 evenly spaced
    blocks of 64 KiB stand for the rest, the first and the last among them: fine-tuning changes weights everywhere,
    and a node must not read 15 GB twice at start.

    Raises:
        CheckpointError: `folder` is not a readable folder with files.
    """
    digest = hashlib.sha256()
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file() and counts(path.name))
        for path in files:
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            _add_file(digest, path)
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {folder}: {error.strerror}") from error
    if not files:
        raise CheckpointError(f"the checkpoint folder {folder} has no files that one is loaded from")
    return digest.hexdigest()


def counts(name: str) -> bool:
    """Whether a file of this name is part of the checkpoint in whose folder it lies."""
    return not name.startswith(".") and any(fnmatch.fnmatchcase(name, pattern) for pattern in _READ)


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

"""Finished episodes, one a line, so that neither Ctrl-C nor a killed machine loses more than those under way.

A line is appended as soon as its episode is over and carries a key made of everything that the episode depends on. A
command that meets the key again takes the episode from here: it resumes, extends, or shares the dense run of another.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.files import MEGABYTE, parse_json, read_text
from flashvla_ros.evaluation.jobs import Record

_MOST_BYTES = 1000 * MEGABYTE
_PLAYING = ("core", "gate", "control", "vla", "sim", "evaluation/jobs", "evaluation/open_loop")  # what an episode runs


def beside(file: Path) -> Path:
    """Return the ledger of what a command writes into a file, where nobody names another."""
    return file.with_name(f"{file.name}.episodes.jsonl")


class EpisodeLedger:
    """The file of finished episodes; without a path they are kept in memory alone.

    Attributes:
        records: Key to record.
        codes: Key to the digest of the code that played it; empty where the line does not say.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.records: dict[str, Record] = {}
        self.codes: dict[str, str] = {}
        self._added: set[str] = set()
        self._stream: IO[str] | None = None
        if path is not None and path.exists():
            self._read(path)

    @property
    def foreign(self) -> set[str]:
        """Keys of records that were played by other code than this."""
        return {key for key, code in self.codes.items() if code != code_digest()}

    def origins(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return for ``meta`` how many episodes each code played, how many of them other code and earlier runs."""
        keys = set(keys)
        codes = collections.Counter(self.codes[key] for key in keys)
        other = codes.total() - codes[code_digest()]
        return {"codes": dict(codes), "other_code": other, "from_ledger": len(keys - self._added)}

    def add(self, key: str, record: Record) -> None:
        """Keep one episode, on disk before this returns.

        Raises:
            FlashVLAError: It cannot be written.
        """
        self.records[key] = record
        self.codes[key] = code_digest()
        self._added.add(key)
        if self._stream is not None:
            line = {"key": key, "code": code_digest(), "record": dataclasses.asdict(record)}
            try:
                self._stream.write(json.dumps(line, separators=(",", ":")) + "\n")
                self._stream.flush()
                os.fsync(self._stream.fileno())
            except OSError as error:
                raise FlashVLAError(f"cannot write {self.path}: {error.strerror}") from error

    def __enter__(self) -> EpisodeLedger:
        if self.path is None:
            return self
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
            self._stream = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise FlashVLAError(f"cannot write {self.path}: {error.strerror}") from error
        if torn and self._stream.tell():  # a write that was cut off must not swallow the next line
            self._stream.write("\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError):  # of a full disk: `add` has said so
                self._stream.close()
            self._stream = None

    def _read(self, path: Path) -> None:
        for text in read_text(path, most=_MOST_BYTES).splitlines():
            try:
                line = parse_json(text)
                self.records[line["key"]] = Record.from_dict(line["record"])
                self.codes[line["key"]] = str(line.get("code", ""))
            except (ValueError, KeyError, TypeError):
                continue  # cut off by a kill, or of another version: the episode is played again


@functools.cache
def code_digest() -> str:
    """Return 12 hexadecimal digits of the code that an episode runs."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for place in _PLAYING:
        for path in sorted((package / place).rglob("*.py")) or [package / f"{place}.py"]:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]

"""YAML within bounded time and memory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from flashvla_ros.cli import yaml_files
from flashvla_ros.cli.yaml_files import read_yaml
from flashvla_ros.core.errors import SettingsError

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "more than 200000 values"),
        (MERGES, "more than 200000 values"),
        ("[" * 100_000, "nested|nesting"),
        ("- " * 100_000, "nested|nesting"),
        ("{a: " * 500, "nested more than 100 deep"),
        ("a: &a [*a]", "inside of what it repeats"),
        ("a: *b", "for nothing"),
        ("[" + "1, " * 1_000_000 + "]", "more than 200000 values"),
        ("a: 2001-99-99", "month must be in"),
        ("a: " + "9" * 5000, "not YAML that can be read"),
        ("!!python/object/apply:os.system [exit]", "could not determine a constructor"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("\t{", "cannot start any token"),
        ("a: " + "x" * 5_000_000, "more than 4 MB"),
    ],
)
@pytest.mark.parametrize("loader", ["libyaml", "python"])
def test_a_bomb_is_refused_soon_in_one_line(
    tmp_path: Path, text: str, words: str, loader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if loader == "python":
        if len(text) > 100_000:
            pytest.skip("the parser in Python takes its time, in proportion to the text")
        monkeypatch.setattr(yaml_files, "_LOADER", yaml_files.yaml.SafeLoader)
        words = f"{words}|alias|expected"
    path = tmp_path / "a.yaml"
    path.write_text(text)
    started_s = time.monotonic()
    with pytest.raises(SettingsError, match=words) as refusal:
        read_yaml(path)
    assert time.monotonic() - started_s < 10.0
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500


def test_what_a_tool_writes_with_aliases_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: &one [1.0, 2.0]\nb: *one\nc: {<<: {d: 1}}\n")
    assert read_yaml(path) == {"a": [1.0, 2.0], "b": [1.0, 2.0], "c": {"d": 1}}

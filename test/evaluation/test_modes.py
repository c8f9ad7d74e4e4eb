"""Modes name complete settings; what is misspelt is answered in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.paths import share_path
from flashvla_ros.core.settings import Settings
from flashvla_ros.evaluation.modes import BUILT_IN, choose_modes, read_modes

SHIPPED = share_path("config", "eval_modes.yaml")


def values_of(*names: str, file: Path = SHIPPED) -> list[dict]:
    return [dict(mode.values) for mode in choose_modes(names, file)]


def test_built_in_modes_say_what_they_are() -> None:
    settings = {mode.name: mode.settings({}) for mode in choose_modes(BUILT_IN, SHIPPED)}
    assert (settings["dense"].gate.mode, settings["dense"].pruning.method) == ("off", "none")
    assert settings["guarded"] == Settings()
    assert settings["prune"].pruning == settings["paper"].pruning
    assert (settings["prune"].gate.mode, settings["paper"].gate.mode) == ("off", "paper")
    assert settings["paper"].gate.max_reuse == 1
    assert not settings["gate"].pruning.drop


def test_every_shipped_mode_is_complete_and_valid() -> None:
    for mode in choose_modes(read_modes(SHIPPED), SHIPPED):
        mode.settings({})


def test_a_mode_with_changes_and_a_pattern() -> None:
    (changed,) = values_of("prune:pruning.keep_ratio=0.25,pruning.layer=3")
    assert (changed["pruning.keep_ratio"], changed["pruning.layer"], changed["gate.mode"]) == (0.25, 3, "off")
    names = [mode.name for mode in choose_modes(["budget-*", "dense", "budget-50"], SHIPPED)]
    assert names[-1] == "dense"
    assert len(names) == len(set(names)) > 3


def test_a_mode_of_a_file_starts_from_another(tmp_path: Path) -> None:
    file = tmp_path / "modes.yaml"
    file.write_text("modes:\n  a: {gate.mode: off, gate.delta: 0.9}\n  b: {like: a, gate.delta: 0.1}\n")
    assert values_of("b", file=file) == [{"gate.mode": "off", "gate.delta": 0.1}]


def test_overrides_hold_for_every_mode_but_do_not_undo_it() -> None:
    (mode,) = choose_modes(["dense"], SHIPPED)
    settings = mode.settings({"gate.mode": "guarded", "gate.delta": 0.9})
    assert (settings.gate.mode, settings.gate.delta) == ("off", 0.9)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gaurded", "no mode 'gaurded'; did you mean guarded"),
        ("prune:pruning.keep=1", "no parameter 'pruning.keep'"),
        ("prune:pruning.keep_ratio=2", "from 0.01 to 1"),
    ],
)
def test_what_is_misspelt_is_one_line(name: str, message: str) -> None:
    with pytest.raises(FlashVLAError, match=message) as error:
        choose_modes([name], SHIPPED)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modes: [1]", "defines no modes"),
        ("x: 1", "defines no modes"),
        ("modes: {a: {like: b}}", "is like 'b', which is no other mode"),
        ("modes: {a: {like: a}}", "is like 'a', which is no other mode"),
        ("modes: {a: {like: [b]}}", r"is like \"\['b'\]\", which is no other mode"),
        ("modes: {a: {1: 2}}", "no parameter '1'"),
        ("[modes]", "defines no modes"),
        ("modes: {a: {gate.detla: 1}}", "did you mean gate.delta"),
    ],
)
def test_a_bad_file_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "modes.yaml"
    file.write_text(text)
    with pytest.raises(FlashVLAError, match=message):
        choose_modes(["a"], file)

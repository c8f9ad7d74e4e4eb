"""The command line: lazy, and one clear line for what the user can mend."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import types
from collections.abc import Callable

import pytest

from flashvla_ros import __main__ as cli
from flashvla_ros.core.errors import SettingsError


def add_command(monkeypatch: pytest.MonkeyPatch, run: Callable[[argparse.Namespace], int]) -> None:
    """Register a command `trial` that does `run`."""
    module = types.ModuleType("trial_command")
    module.add_arguments = lambda parser: parser.add_argument("--number", type=int, default=0)  # type: ignore[attr-defined]
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trial_command", module)
    monkeypatch.setattr(cli, "COMMANDS", (*cli.COMMANDS, cli.Subcommand("trial", "trial_command", "a trial")))


def raiser(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def run(_: argparse.Namespace) -> int:
        raise error

    return run


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.name)
def test_every_command_describes_itself(command: cli.Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main([command.name, "--help"])
    assert exit_info.value.code == 0
    assert command.summary.split()[0] in capsys.readouterr().out
    assert callable(importlib.import_module(command.module).run)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import contextlib, sys; from flashvla_ros import __main__ as cli\n"
        "with contextlib.suppress(SystemExit): cli.main(['--help'])\n"
        "print('HEAVY', sorted({'numpy', 'rclpy', 'torch', 'mujoco', 'cv2'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(command.name in result.stdout for command in cli.COMMANDS)
    assert "HEAVY []" in result.stdout


def test_arguments_reach_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    add_command(monkeypatch, lambda args: args.number)
    assert cli.main(["trial", "--number", "7"]) == 7


@pytest.mark.parametrize("arguments", [[], ["nope"], ["params", "--nope"], ["trial", "--number", "x"]])
def test_bad_arguments_exit_with_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_command(monkeypatch, lambda _: 0)
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_error_of_the_user_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    add_command(monkeypatch, raiser(SettingsError("gate.delta must be from 0 to 1, got 1.5")))
    assert cli.main(["trial"]) == 2
    assert capsys.readouterr().err == "flashvla-ros: gate.delta must be from 0 to 1, got 1.5\n"


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    add_command(monkeypatch, raiser(ModuleNotFoundError("No module named 'metaworld'", name="metaworld.policies")))
    assert cli.main(["trial"]) == 2
    assert "pip install metaworld==3.1.1 mujoco==3.3.0 'gymnasium>=1.1,<2'" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'tpyo'", name="tpyo"), RuntimeError("a bug")])
def test_a_bug_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    add_command(monkeypatch, raiser(error))
    with pytest.raises(type(error)):
        cli.main(["trial"])


def test_ctrl_c_exits_as_shells_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    add_command(monkeypatch, raiser(KeyboardInterrupt()))
    assert cli.main(["trial"]) == 130


def test_reader_that_stops_early_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as closed_pipe:
        result = subprocess.run(
            [sys.executable, "-m", "flashvla_ros", "params"],
            stdout=closed_pipe,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert result.returncode == 141
    assert result.stderr == b""

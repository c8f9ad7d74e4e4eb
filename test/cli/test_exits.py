"""How a module's command ends."""

from __future__ import annotations

import pytest

from flashvla_ros.cli.exits import exit_code
from flashvla_ros.core.errors import FlashVLAError


def raising(error: BaseException):
    def work() -> None:
        raise error

    return work


def test_work_that_returns_ends_with_0(capsys):
    assert exit_code(lambda: "anything") == 0
    assert capsys.readouterr() == ("", "")


def test_what_the_user_can_mend_is_one_line_and_2(capsys):
    assert exit_code(raising(FlashVLAError("--size is missing: give one"))) == 2
    assert capsys.readouterr() == ("", "--size is missing: give one\n")


@pytest.mark.parametrize(("advice", "line"), [("", ""), ("go on with --resume", "interrupted: go on with --resume\n")])
def test_ctrl_c_is_130_with_advice_where_there_is_some(capsys, advice, line):
    assert exit_code(raising(KeyboardInterrupt()), interrupted=advice) == 130
    assert capsys.readouterr() == ("", line)


def test_a_bug_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        exit_code(raising(ZeroDivisionError()))

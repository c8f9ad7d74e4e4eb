"""Fanning out over processes: the same results, each when it is there; one line where it fails. Ray: test/system."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flashvla_ros import __main__ as cli
from flashvla_ros.cli.fanout import fan_out
from flashvla_ros.core.errors import BagError, FlashVLAError


def square_of(number):
    if number < 0:
        raise BagError(f"{number} is negative")
    return number * number, os.getpid()


def die(number):
    os._exit(number)


def linger(_):
    os.write(1, f"{os.getpid()}\n".encode())  # in one piece: two workers write to one pipe
    time.sleep(100)


def wait_for(file):
    while file is not None and not file.exists():  # the test's own time limit ends a wait for ever
        time.sleep(0.05)


def test_one_job_stays_in_this_process():
    assert list(fan_out(square_of, [1, 2])) == [(0, (1, os.getpid())), (1, (4, os.getpid()))]


def test_processes_give_the_same():
    results = dict(fan_out(square_of, list(range(6)), jobs=2))
    assert {number: square for number, (square, _) in results.items()} == {number: number**2 for number in range(6)}
    assert os.getpid() not in {pid for _, pid in results.values()}


def test_what_is_done_does_not_wait_for_what_was_asked_before_it(tmp_path):
    release = tmp_path / "release"
    results = fan_out(wait_for, [release, None, None], jobs=2)
    assert {next(results)[0], next(results)[0]} == {1, 2}
    release.touch()
    assert [number for number, _ in results] == [0]


@pytest.mark.parametrize(
    "words",
    [["--jobs", "0"], ["--jobs", "-1"], ["--ray-gpus", "-1"], ["--ray-gpus", "nan"], ["--jobs", "2", "--ray", "auto"]],
)
@pytest.mark.parametrize("command", ["eval", "certify", "tune"])
def test_a_number_of_processes_that_cannot_be_is_refused_at_once(command, words, capsys):
    bag = ["bag"] if command == "tune" else []
    with pytest.raises(SystemExit) as refusal:
        cli.main([command, *bag, *words])
    assert refusal.value.code == 2
    said = f"argument {words[-2]}: {'must be a' if len(words) == 2 else 'not allowed with argument --jobs'}"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_of_the_work_comes_through(jobs):
    with pytest.raises(BagError, match="-1 is negative"):
        list(fan_out(square_of, [3, -1, 4], jobs=jobs))


def test_a_killed_process_is_one_line():
    with pytest.raises(FlashVLAError, match="lower --jobs"):
        list(fan_out(die, [1, 2], jobs=2))


def test_workers_of_a_killed_parent_end_too():
    code = "import test_fanout; list(test_fanout.fan_out(test_fanout.linger, [1, 2], jobs=2))"
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent, **pipe) as parent:
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        parent.kill()
    for worker in workers:
        while Path(f"/proc/{worker}").exists():  # the test's own time limit ends a wait for ever
            time.sleep(0.05)

"""Fanning out over processes: the same results in the same order; one line where it fails. Ray: test/system."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flashvla_ros.cli.fanout import fan_out
from flashvla_ros.core.errors import BagError, FlashVLAError


def square_of(number):
    if number < 0:
        raise BagError(f"{number} is negative")
    return number * number, os.getpid()


def die(number):
    os._exit(number)


def linger(_):
    print(os.getpid(), flush=True)
    time.sleep(100)


def squares(numbers, **how):
    return [square for square, _ in fan_out(square_of, numbers, **how)]


def test_one_job_stays_in_this_process():
    assert [pid for _, pid in fan_out(square_of, [1, 2])] == [os.getpid()] * 2


def test_processes_give_the_same_in_order():
    results = list(fan_out(square_of, list(range(6)), jobs=2))
    assert [square for square, _ in results] == [number**2 for number in range(6)]
    assert os.getpid() not in {pid for _, pid in results}


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_of_the_work_comes_through(jobs):
    with pytest.raises(BagError, match="-1 is negative"):
        squares([3, -1, 4], jobs=jobs)


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

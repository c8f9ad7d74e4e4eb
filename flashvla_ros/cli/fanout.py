"""Run a function over many items at once: in processes of this machine, or over a Ray cluster."""

from __future__ import annotations

import argparse
import concurrent.futures
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from flashvla_ros.cli.counts import positive
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.extras import remedy

Item = TypeVar("Item")
Result = TypeVar("Result")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``--jobs`` and ``--ray``, which commands that fan out share."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--jobs", type=positive, default=1, metavar="N", help="processes to spread the work over (1)")
    where.add_argument("--ray", metavar="ADDRESS", help="spread it over this Ray cluster; local: start one here")
    parser.add_argument("--ray-gpus", type=_gpus, default=0.0, metavar="N", help="GPUs that one Ray task needs (0)")


def _gpus(text: str) -> float:
    if not 0.0 <= (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number from 0 on, got {text!r}")
    return value


def fan_out(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    jobs: int = 1,
    ray: str | None = None,
    ray_gpus: float = 0.0,
) -> Iterator[tuple[int, Result]]:
    """Yield each item's number in `items` and ``function(item)``, as soon as that is done.

    Args:
        function: At the top level of a module, so that other processes can import it.
        items: Their values travel by pickle.
        jobs: Processes; with 1 the work is done in this one.
        ray: Address of a Ray cluster, ``auto`` for the one that runs here, ``local`` to start one; None for none.
        ray_gpus: GPUs that Ray reserves for each item.

    Raises:
        FlashVLAError: What `function` raised of this kind, or the processes or Ray cannot be had.
    """
    if ray is not None:
        yield from _over_ray(function, items, ray, ray_gpus)
    elif jobs > 1 and len(items) > 1:
        yield from _over_processes(function, items, min(jobs, len(items)))
    else:
        yield from enumerate(map(function, items))


def _over_processes(
    function: Callable[[Item], Result], items: Sequence[Item], jobs: int
) -> Iterator[tuple[int, Result]]:
    # A forked child of a process that has used torch or CUDA may hang, so children are spawned.
    context = multiprocessing.get_context("spawn")
    executor = concurrent.futures.ProcessPoolExecutor(jobs, context, initializer=_follow_parent)
    try:
        numbers = {executor.submit(function, item): number for number, item in enumerate(items)}
        for future in concurrent.futures.as_completed(numbers):
            yield numbers[future], future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise FlashVLAError("a worker process was killed, most likely for want of memory: lower --jobs") from error
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        executor.shutdown()


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, and end with it: a worker of a killed parent would wait for work for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _over_ray(
    function: Callable[[Item], Result], items: Sequence[Item], address: str, gpus: float
) -> Iterator[tuple[int, Result]]:
    try:
        import ray
    except ImportError as error:
        raise FlashVLAError(f"Ray is not installed: {remedy('ray')}, or leave --ray out") from error
    _probe(address)
    try:
        ray.init(address=address, log_to_driver=False, **({"include_dashboard": False} if address == "local" else {}))
    except Exception as error:  # among them plain Exception, where the cluster starts too slowly
        # Ray's clusters want a token once ~/.ray/auth_token exists, but a driver sends it only where it is told to.
        hint = "" if address == "local" else "; if it wants a token, set RAY_AUTH_MODE=token"
        raise FlashVLAError(f"cannot use the Ray cluster {address}: {' '.join(str(error).split())}{hint}") from error
    try:
        task = ray.remote(num_cpus=1, num_gpus=gpus)(function)
        numbers = {task.remote(item): number for number, item in enumerate(items)}
        while numbers:
            (reference, *_), _ = ray.wait(list(numbers))
            yield numbers.pop(reference), ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, FlashVLAError):
            raise error.cause from None
        reason = str(error.cause).strip().splitlines()[-1:]  # such as a module that the cluster's machines lack
        raise FlashVLAError(f"a task failed on the Ray cluster {address}: {' '.join(reason)}") from error
    except ray.exceptions.RayError as error:
        raise FlashVLAError(f"the Ray cluster {address} failed: {' '.join(str(error).split())}") from error
    finally:
        ray.shutdown()


def _probe(address: str) -> None:
    """Refuse a HOST:PORT where nobody answers; Ray itself would try for a minute and then end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5.0).close()
    except OSError as error:
        raise FlashVLAError(f"no Ray cluster answers at {address}: {error.strerror or error}") from error

"""``flashvla-ros serve``: our policy over openpi's protocol, for whoever speaks it."""

from __future__ import annotations

import argparse
import asyncio
import functools
import importlib.util
import logging
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

from flashvla_ros.cli.overrides import parse_overrides
from flashvla_ros.cli.parameter_files import DEFAULT_NODE, read_parameters
from flashvla_ros.core.errors import RemoteError, SettingsError
from flashvla_ros.core.extras import remedy
from flashvla_ros.core.settings import Settings
from flashvla_ros.remote.endpoint import KEY_VARIABLE, api_key, is_loopback
from flashvla_ros.remote.loading import check_keys
from flashvla_ros.remote.replicas import run as run_replicas
from flashvla_ros.remote.server import PolicyServer, tls_of
from flashvla_ros.remote.service import ServerOptions
from flashvla_ros.vla.loading import load_policy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``serve``."""
    parser.add_argument("--checkpoint", default="", metavar="DIR", help="OpenVLA checkpoint (the demo policy)")
    parser.add_argument("--params", type=Path, metavar="FILE", help="parameter file, as the policy node's")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="parameter, such as gate.delta"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="(%(default)s)")
    parser.add_argument("--clients", type=int, default=32, metavar="N", help="most at a time (%(default)s)")
    parser.add_argument("--replicas", type=int, default=0, metavar="N", help="of the model, by Ray Serve, a GPU each")
    parser.add_argument("--ray", metavar="ADDRESS", help="cluster of --replicas (local: start one)")
    parser.add_argument("--rate", type=float, default=100.0, metavar="HZ", help="most answers a client (%(default)g)")
    away = parser.add_argument_group("for clients on other machines, who need both")
    away.add_argument("--certificate", type=Path, metavar="PEM", help="the server's certificate and its private key")
    away.add_argument("--api-key-file", default="", metavar="FILE", help=f"the key to ask for (or {KEY_VARIABLE})")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM."""
    options = options_of(args)
    values = read_parameters(args.params, DEFAULT_NODE) if args.params else {}
    if args.checkpoint:
        values["model.checkpoint"] = args.checkpoint
    settings = Settings().with_values({**values, **parse_overrides(args.set)})
    if settings.model.remote:
        raise SettingsError("model.remote names a policy that is served already: give a checkpoint")
    check_keys(settings)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        asyncio.run(_until_a_signal(_serving(settings, options)))
    except OSError as error:
        raise RemoteError(f"cannot listen on {options.host}:{options.port}: {error.strerror}") from error
    return 0


def options_of(args: argparse.Namespace) -> ServerOptions:
    """Return what the command line asks for.

    Raises:
        SettingsError: Other machines could reach the server, and it lacks TLS or a key; or a value is out of range.
    """
    key = api_key(args.api_key_file)
    if not is_loopback(args.host) and not (args.certificate and key):
        raise SettingsError(
            f"--host {args.host} is open to other machines and needs --certificate and an API key "
            f"(--api-key-file or {KEY_VARIABLE})"
        )
    if not (0 <= args.port < 65536 and args.clients > 0 and 0.0 < args.rate < float("inf") and args.replicas >= 0):
        raise SettingsError("--port is 0 to 65535, --clients and --rate are above 0, and --replicas is 0 or more")
    if args.ray and not args.replicas:
        raise SettingsError("--ray names the cluster of --replicas: give --replicas, or leave --ray out")
    tls_of(args.certificate)
    ray = args.ray or "local"
    return ServerOptions(args.host, args.port, key, args.certificate, args.clients, args.rate, args.replicas, ray)


def _serving(settings: Settings, options: ServerOptions) -> Callable[[asyncio.Event], Awaitable[None]]:
    """Return what serves until an event is set.

    Raises:
        RemoteError: Ray Serve is not installed.
    """
    if not options.replicas:
        return PolicyServer(load_policy(settings), settings, options).run
    for module in ("ray", "starlette"):
        if importlib.util.find_spec(module) is None:
            raise RemoteError(f"--replicas needs Ray Serve, which is not installed: {remedy('ray')}")
    return functools.partial(run_replicas, settings, options)


async def _until_a_signal(serving: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await serving(ended)

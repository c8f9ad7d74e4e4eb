"""``flashvla-ros doctor``: looks at the machine, at ROS, at the cameras and at a checkpoint or a server."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

from flashvla_ros.cli.overrides import parse_overrides
from flashvla_ros.cli.parameter_files import DEFAULT_NODE, read_parameters
from flashvla_ros.cli.results import meta, processor_name, write_results
from flashvla_ros.core.errors import FlashVLAError, RemoteError, SettingsError
from flashvla_ros.core.paths import checkpoint_folder
from flashvla_ros.core.settings import Settings
from flashvla_ros.doctor.finding import Finding, Level, ok
from flashvla_ros.doctor.machine import check_machine
from flashvla_ros.doctor.ros import check_ros
from flashvla_ros.doctor.settings import check_certificate, check_settings
from flashvla_ros.remote.loading import precheck


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``doctor``."""
    parser.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="look at this checkpoint alone, and read its weights once"
    )
    parser.add_argument(
        "--explain", action="store_true", help="run the checkpoint, and say what is pruned, reused and drafted, in ms"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="as if the node had this value of a parameter"
    )
    parser.add_argument(
        "--settings", type=Path, metavar="YAML", help="as if the node were started with this parameter file"
    )
    parser.add_argument("--node", default=DEFAULT_NODE, help="full name of the node (%(default)s)")
    parser.add_argument(
        "--remap",
        action="append",
        default=[],
        metavar="TOPIC:=NAME",
        help="as the node's, such as image:=/cam/image_raw",
    )
    parser.add_argument("--wait", type=float, default=3.0, metavar="S", help="longest wait for anything (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings here too")


def run(args: argparse.Namespace) -> int:
    """Print the findings as they come; return 1 where something does not work, else 0."""
    values = {**(read_parameters(args.settings, args.node) if args.settings else {}), **parse_overrides(args.set)}
    settings = Settings().with_values(values)
    findings = []
    if wrong := [rule for rule in args.remap if not all(rule.partition(":="))]:
        raise SettingsError(f"--remap takes TOPIC:=NAME, such as image:=/camera/image_raw, got {wrong[0]!r}")
    if args.explain and settings.model.remote and args.checkpoint is None:
        raise SettingsError("--explain runs a checkpoint, but model.remote names a server: give --checkpoint")
    found = _findings(settings, args)
    for finding in itertools.chain(found, _explained(args.checkpoint, settings) if args.explain else ()):
        findings.append(finding)
        print(finding, flush=True)
    if args.json is not None:
        rows = [{"name": f.name, "level": str(f.level), "text": f.text, "remedy": f.remedy} for f in findings]
        write_results(args.json, meta(processor_name(), command="doctor"), rows)
    failures = sum(finding.level is Level.FAILURE for finding in findings)
    warnings = sum(finding.level is Level.WARNING for finding in findings)
    print(f"{failures} to mend, {warnings} to know of" if failures or warnings else "all is well")
    return 1 if failures else 0


def _findings(settings: Settings, args: argparse.Namespace) -> Iterator[Finding]:
    checkpoint: Path | None = args.checkpoint
    for finding in check_settings(settings):
        if checkpoint is None or finding.name != "limits":  # which are the robot's
            yield finding
    if checkpoint is None:
        yield from check_machine(settings.model)
        yield from check_ros(settings, args.wait, args.remap, args.node)
        if settings.model.remote:
            yield _remote(settings, args.wait)
            return
    try:
        folder = _folder(checkpoint, settings)
    except FlashVLAError as error:
        yield Finding.failure_of("checkpoint", error)
        return
    # Torch takes seconds to import, and may be what is missing.
    try:
        from flashvla_ros.doctor.checkpoint import check_checkpoint
    except ImportError as error:
        yield Finding("checkpoint", Level.FAILURE, f"cannot be looked at: {error}", "mend torch first")
        return
    yield from check_checkpoint(folder, settings)
    if folder.is_dir():
        yield check_certificate(settings, folder)


def _remote(settings: Settings, wait_s: float) -> Finding:
    """Say whether the node could use the policy server; its model, which may move a robot by now, is asked nothing."""
    try:
        precheck(settings)
        from flashvla_ros.remote.policy import RemotePolicy  # websockets is an extra

        RemotePolicy.reach(settings, wait_s)
    except RemoteError as error:
        return Finding("remote", Level.FAILURE, str(error), "start the server, or see docs/remote.md")
    except SettingsError as error:
        return Finding.failure_of("remote", error)
    return ok("remote", f"{settings.model.remote} lets the node in; whether its actions fit is seen at activation")


def _explained(checkpoint: Path | None, settings: Settings) -> Iterator[Finding]:
    from flashvla_ros.doctor.explain import explain

    yield from explain(_folder(checkpoint, settings), settings)


def _folder(checkpoint: Path | None, settings: Settings) -> Path:
    return checkpoint_folder(checkpoint or settings.model.checkpoint)

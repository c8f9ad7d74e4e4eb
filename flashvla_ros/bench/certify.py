"""``flashvla-ros bench --certify N``: the engine's answers to N frames held to the reference's, on this machine."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flashvla_ros.bench import measure, models
from flashvla_ros.bench.run import seen_by, settings_of
from flashvla_ros.bench.trace import DATA, load_observations, relative
from flashvla_ros.cli.overrides import parse_overrides
from flashvla_ros.cli.results import meta
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.paths import checkpoint_folder
from flashvla_ros.core.policy import Request
from flashvla_ros.core.provenance import checkpoint_fingerprint
from flashvla_ros.core.settings import PruningSettings, Settings
from flashvla_ros.core.types import Observation
from flashvla_ros.vla.checked import held_to
from flashvla_ros.vla.step import VLAPolicy


def certify(args: argparse.Namespace) -> dict[str, Any]:
    """Compare the engines on the first frames of a bag, by its settings, or on those that the package has.

    Raises:
        BagError: The bag cannot be read, or has no observation.
        FlashVLAError: The engine is the reference, or the checkpoint is not the recorded one.
    """
    with _recorded(args) as (settings, recorded, known):
        if not args.model and settings.model.remote:
            raise FlashVLAError(f"{settings.model.remote} drove the robot, no checkpoint of here: give one to --model")
        model = args.model or settings.model.checkpoint or models.DEMO
        folder = checkpoint_folder("" if model == models.DEMO else model)
        checkpoint = "" if model in models.SIZES else checkpoint_fingerprint(folder)
        if known and checkpoint != known:
            raise FlashVLAError(
                f"{args.bag} was recorded with another checkpoint ({known[:12]}) than {model} ({checkpoint[:12]}): "
                f"give that one to --model"
            )
        policy = models.load_subject(model, settings.model)
        if policy.backend.engine == "eager":
            raise FlashVLAError("the engine eager is the reference: --certify needs --engine static or compiled")
        seen = recorded or (seen_by(policy, frame) for frame in load_observations(models.INSTRUCTION))
        rows = list(_rows(policy, settings.pruning, itertools.islice(seen, args.certify)))
    frames = args.bag or DATA
    made = meta(
        **measure.describe_backend(policy.backend),
        command="bench --certify",
        model=model,
        checkpoint=checkpoint,
        frames={"file": relative(frames), "sha256": _digest(frames)},
        asked=args.certify,
        equal=all(row["equal"] for row in rows),
        pruning=vars(settings.pruning),
    )
    return {"meta": made, "rows": rows}


def line(results: dict[str, Any]) -> str:
    """Say in one line what came out."""
    run, rows = results["meta"], results["rows"]
    differing = [row for row in rows if not row["equal"]]
    what = f"engine {run['engine']} on {run['device']}, {run['dtype']}"
    asked = "" if len(rows) == run["asked"] else f" (of {run['asked']} asked for, there are no more)"
    if not differing:
        return f"{what}: equal to the reference in all {len(rows)} frames{asked}"
    first = differing[0]
    return (
        f"{what}: differs in {len(differing)} of {len(rows)} frames{asked}; frame {first['frame']}: "
        f"{first['difference']}"
    )


@contextlib.contextmanager
def _recorded(args: argparse.Namespace) -> Iterator[tuple[Settings, Iterator[Observation] | None, str]]:
    """Give settings, observations where there is a bag, and the recorded checkpoint's fingerprint where it has one."""
    if args.bag is None:
        yield settings_of(args), None, ""
        return
    from flashvla_ros.bags.options import Source  # needs an extra

    with Source(parse_overrides(args.set)).open(args.bag) as recording:
        first = recording.log.first
        settings = settings_of(args, recording.settings.first)
        yield settings, (frame.observation for frame in recording.frames), first.checkpoint if first else ""


def _rows(policy: VLAPolicy, pruning: PruningSettings, seen: Iterator[Observation]) -> Iterator[dict[str, Any]]:
    reference, previous = policy.reference(), None
    for number, observation in enumerate(seen):
        answer, expected, difference = held_to(reference, policy, Request(observation, pruning, previous))
        previous = expected
        yield {
            "frame": number,
            "stamp_s": observation.stamp_s,
            "equal": not difference,
            "difference": difference,
            "tokens": answer.tokens,
            "expected_tokens": expected.tokens,
            "action_error": float(np.abs(answer.normalized - expected.normalized).max()),
        }


def _digest(path: Path) -> str:
    """SHA-256 of the files in their order."""
    files: Sequence[Path] = sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()

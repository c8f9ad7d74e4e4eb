"""``flashvla-ros certify``: the fastest setting whose induced failures are bounded; see docs/calibration.md."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from pathlib import Path

from tqdm import tqdm

import flashvla_ros
from flashvla_ros.cli.fanout import add_arguments as add_fanout_arguments
from flashvla_ros.cli.fanout import fan_out
from flashvla_ros.cli.progress import INTERVAL_S
from flashvla_ros.cli.results import write_results
from flashvla_ros.core.certificate import Certificate, compared
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.provenance import CERTIFICATE
from flashvla_ros.core.settings import Settings
from flashvla_ros.evaluation import suites
from flashvla_ros.evaluation.certify import Certification, Trials
from flashvla_ros.evaluation.command import evaluation_of
from flashvla_ros.evaluation.jobs import close_worlds, run_job
from flashvla_ros.evaluation.ledger import EpisodeLedger, beside, code_digest
from flashvla_ros.evaluation.meta import meta_of
from flashvla_ros.evaluation.open_loop import OPEN_LOOP
from flashvla_ros.evaluation.plan import Evaluation
from flashvla_ros.evaluation.summary import DENSE
from flashvla_ros.sim.perturbation import NONE

CANDIDATES = [  # from the safest on, so without pruning first; the fourth is the shipped default
    "gate:gate.delta=0.9,gate.max_reuse=1",
    "gate:gate.max_reuse=1",
    "guarded:gate.max_reuse=1",
    "guarded",
    "guarded:gate.delta=0.3,gate.max_reuse=3",
]
EXIT_NONE = 1
_ACCELERATING = ("decode.", "control.blend", "control.prefetch")  # beside gate and pruning, which the reference sets
_EPISODES, _FIRST_SEED = 25, 10_000
_BATCH = 12  # starts of one process before the reference is asked


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    suites.add_arguments(parser)
    parser.add_argument(
        "--candidates", nargs="+", action="extend", metavar="MODE", help="from the safest to the fastest (five)"
    )
    parser.add_argument("--risk", type=float, default=0.05, help="most episodes that may fail by it (%(default)s)")
    parser.add_argument("--confidence", type=float, default=0.95, help="of the bound (%(default)s)")
    parser.add_argument("--episodes", type=int, metavar="N", help=f"starts of each task ({_EPISODES}; of LIBERO 50)")
    parser.add_argument("--seed", type=int, metavar="S", help=f"first seed ({_FIRST_SEED}; of LIBERO 0)")
    parser.add_argument(
        "--out", type=Path, default=Path(CERTIFICATE), metavar="F", help="certificate to write (%(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="F", help="write what every candidate came to")
    parser.add_argument("--ledger", type=Path, metavar="F", help="finished episodes (OUT.episodes.jsonl)")
    add_fanout_arguments(parser)


def plan_of(args: argparse.Namespace) -> Evaluation:
    """Return what is to be played; one line of error says what is wrong with the arguments."""
    if not (0.0 < args.risk < 1.0 and 0.0 < args.confidence < 1.0):
        raise FlashVLAError(f"--risk and --confidence lie between 0 and 1, got {args.risk:g} and {args.confidence:g}")
    modes = [DENSE, *(args.candidates or CANDIDATES)]
    if any(name.startswith(OPEN_LOOP) for name in modes):
        raise FlashVLAError(f"{OPEN_LOOP} plays without looking: it is no candidate")
    libero = bool(suites.chosen_tasks(args))
    asked = {"modes": modes, "perturb": [NONE], "free_running": False}
    if args.seed is None:  # LIBERO's seeds are its initial states; elsewhere nothing was tuned or trained on these
        asked["seed"] = 0 if libero else _FIRST_SEED
    if args.episodes is None and not libero:
        asked["episodes"] = _EPISODES
    evaluation = evaluation_of(argparse.Namespace(**{**vars(args), **asked}))
    looking = tuple(mode for mode in evaluation.modes if not mode.name.startswith(OPEN_LOOP))
    if moving := [mode.name for mode in looking if evaluation.settings(mode).gate.calibration == "online"]:
        raise FlashVLAError(f"{moving[0]} moves its thresholds: what its first episodes show certifies no later one")
    own, usual = evaluation.settings(looking[0]).values(), Settings().values()
    if lent := [name for name in own if name.startswith(_ACCELERATING) and own[name] != usual[name]]:
        raise FlashVLAError(
            f"{lent[0]} would hold for {DENSE} too, so what it costs goes unseen: give it in --candidates"
        )
    if len(looking) < 2:
        raise FlashVLAError(f"--candidates names nothing but the reference {DENSE}: there is nothing to try")
    return dataclasses.replace(evaluation, modes=looking)


def run(args: argparse.Namespace) -> int:
    """Certify; returns the exit code, 1 where no candidate could be certified."""
    evaluation = plan_of(args)
    from flashvla_ros.vla.backend import Backend  # brings torch, which --help needs not

    meta = meta_of(evaluation)
    checkpoint = meta["checkpoint"]["sha256"]
    ledger = EpisodeLedger(args.ledger or beside(args.out))
    workers = functools.partial(fan_out, run_job, jobs=args.jobs, ray=args.ray, ray_gpus=args.ray_gpus)
    rule = {"risk": args.risk, "confidence": args.confidence}
    certification = Certification(evaluation, checkpoint, ledger, workers, **rule)
    starts, candidates = len(certification.starts), len(evaluation.modes) - 1
    if certification.allowed < 0:
        raise FlashVLAError(
            f"{starts} starts cannot certify a risk of {args.risk:g} at {args.confidence:g} even without a failure: "
            "raise --episodes"
        )
    print(f"{starts} starts a candidate; certified with at most {certification.allowed} induced failures")
    tried: list[Trials] = []
    bar = tqdm(total=starts * candidates, unit="start", smoothing=0.05, mininterval=INTERVAL_S)
    try:
        with ledger, bar:
            for trials in certification.tries(_BATCH * args.jobs, bar.update):
                tried.append(trials)
                bar.write(line(trials))
    finally:
        close_worlds()
    if args.json:
        write_results(args.json, meta | rule | {"command": "certify"}, [row(trials) for trials in tried])
    certified = [trials for trials in tried if trials.certified]
    if not certified:
        print(f"nothing is certified: run {DENSE}, or allow more --risk")
        return EXIT_NONE
    best = certified[-1]
    settings = evaluation.settings(best.candidate)
    Certificate(
        name=best.candidate.name,
        checkpoint=checkpoint,
        settings=compared(settings.with_values({"model.dtype": Backend.resolve(settings.model).dtype_name})),
        tasks=evaluation.tasks,
        tasks_digest=certification.tasks_digest(),
        version=flashvla_ros.__version__,
        code=code_digest(),
        episodes=best.played,
        induced=len(best.induced),
        bound=best.bound,
        device=meta["device"],
        failures=tuple(f"{task}:{seed}" for task, seed in best.induced),
        **rule,
    ).write(args.out)
    print(f"wrote {args.out}: {best.candidate.name} is certified; set evidence.certificate to it")
    return 0


def line(trials: Trials) -> str:
    """Return what is printed of a candidate."""
    verdict = "certified" if trials.certified else "not certified"
    return (
        f"{trials.candidate.name}: {verdict}; {len(trials.induced)} induced failures in {trials.played} of "
        f"{trials.planned} starts, at most {trials.bound:.1%}; reuse {trials.reuse_rate:.0%}; {trials.episodes} "
        f"episodes, {2 * trials.planned} in a fixed paired design"
    )


def row(trials: Trials) -> dict[str, object]:
    """Return the row of a candidate in the JSON file."""
    counts = {"failures": len(trials.failures), "induced": len(trials.induced)}
    values = {**dataclasses.asdict(trials), **counts, "candidate": trials.candidate.name}
    return {**values, "episodes": trials.episodes, "paired_design": 2 * trials.planned}

"""What predicts that a reuse will be off? Features that are known before the model runs, on recorded episodes.

``record`` plays episodes in lock-step with the model at every step and keeps what a gate could see; ``analyse`` fits a
logistic model to some tasks and scores it on another, for every task in turn, so that no score has seen its task.

    python -m benchmarks.score record DATA --seeds 8
    python -m benchmarks.score analyse DATA --json F.json
"""

from __future__ import annotations

import argparse
import collections
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.tables import publish, table
from flashvla_ros.bags.features import Features
from flashvla_ros.bags.learning import Examples, auc, examples, joined, learn, logistic
from flashvla_ros.cli.exits import exit_code
from flashvla_ros.cli.results import meta, processor_name
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.settings import CalibrationSettings, PruningSettings, Settings
from flashvla_ros.core.types import ActionKind, ActionSpec, FloatArray
from flashvla_ros.gate.decision import angle_between
from flashvla_ros.gate.memory import GateInput
from flashvla_ros.gate.scene import signature
from flashvla_ros.gate.score import UNLEARNT, predicted_risk, updated

POLICIES = ("demo", "demo-plain")
TOLERANCE = 0.2
LEARNING = 0.2  # calibration.learning
LOSS = 0.05  # share of the steps that may be off, at which reuse is compared
GROUPS: Mapping[str, tuple[str, ...]] = {
    "actions": ("difference", "jerk", "size", "slowing", "turn", "gripper"),
    "frame": ("change", "change_max", "surprise", "change_kept"),
    "tokens": ("probability", "margin", "probability_trend"),
    "robot": ("lag", "speed"),
    "gate": ("angle", "overlap"),
}
Episode = tuple[str, Mapping[str, NDArray[Any]]]  # task, and what was recorded
NAMES = tuple(name for group in GROUPS.values() for name in group)


# Recording.


def record(folder: Path, seeds: range) -> None:
    """Play every task of both policies, seed by seed; an episode that is there is not played again."""
    import torch

    from flashvla_ros.control.step_result import StepResult
    from flashvla_ros.control.stepper import Stepper
    from flashvla_ros.sim.perturbation import plan_episode
    from flashvla_ros.sim.rollout import roll_out
    from flashvla_ros.sim.tasks import TASKS
    from flashvla_ros.sim.world import World
    from flashvla_ros.vla import decoding
    from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    seen: list[NDArray[np.float32]] = []
    choose = decoding.likeliest

    def watched(logits: torch.Tensor, without: int = -1) -> torch.Tensor:
        last = torch.softmax(logits.float().reshape(-1, logits.shape[-1])[-1], -1)
        seen.append(last.topk(2).values.numpy().copy())
        return choose(logits, without)

    decoding.likeliest = watched  # the policy's port carries the least confidence alone
    settings = {
        name: Settings().with_values(
            {"model.checkpoint": f"models/{name}", "model.engine": "eager", "model.threads": 1, "gate.mode": "off"}
        )
        for name in POLICIES
    }
    policies = {name: OpenVLAPolicy.load(values.model) for name, values in settings.items()}
    world = World(image_size=next(iter(policies.values())).model.config.towers[0].image_size)
    for seed, task, name in ((seed, task, name) for seed in seeds for task in TASKS for name in POLICIES):
        path = folder / f"{name}_{task}_{seed}.npz"
        if path.exists():
            continue
        rows: dict[str, list[Any]] = collections.defaultdict(list)

        def keep(result: StepResult, rows: dict[str, list[Any]] = rows) -> None:
            run = result.inference
            rows["images"].append(next(iter(result.observation.images.values())))
            rows["act"].append(run.normalized[0])
            rows["kept"].append(run.kept)
            rows["hand"].append(world.scene.state.hand)
            rows["cmd"].append(result.command[0])
            rows["conf"].append(np.stack(seen[-run.normalized.size :]))

        stepper = Stepper(policies[name], ActionSpec.of(settings[name].action))
        outcome = roll_out(world, stepper, plan_episode(task, seed), settings[name], keep)
        write(path, **{key: np.stack(values) for key, values in rows.items()}, success=np.array(outcome.success))
        print(path.name, "success" if outcome.success else "failure", len(rows["act"]), "steps", flush=True)
    world.close()


def write(path: Path, **arrays: NDArray[Any]) -> None:
    """Write an episode so that a file of that name is always complete."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    partial.replace(path)


# Features.


def features(episode: Mapping[str, NDArray[Any]], age: int) -> tuple[FloatArray, NDArray[np.bool_], FloatArray]:
    """Return [S, F] features, whether repeating the action of `age` steps before was off, and α and φ′ [S, 2]."""
    act, kept, conf = episode["act"], episode["kept"], episode["conf"]
    frames = np.stack([signature({"image": image})[0] for image in episode["images"]])
    tokens, side = 144, 12  # of the demo policies
    rows, off = [], []
    for now in range(age + 2, len(act)):
        last, before, third = act[now - age], act[now - age - 1], act[now - age - 2]
        motion, previous = last[:3], before[:3]
        change = np.abs(frames[now] - frames[now - age]).max(axis=-1)
        usual = np.abs(frames[now - age] - frames[now - age - 1]).max(axis=-1)
        mask = np.zeros(tokens, bool)
        mask[kept[now - age]] = True
        grid = mask.reshape(side, side)[np.ix_(np.arange(16) * side // 16, np.arange(16) * side // 16)]
        share = len(np.intersect1d(kept[now - age], kept[now - age - 1])) / len(kept[now - age])
        chance = len(kept[now - age]) / tokens
        moved = episode["hand"][now] - episode["hand"][now - age]
        asked = episode["cmd"][now - age][:3] * age
        size, size_before = np.linalg.norm(motion), np.linalg.norm(previous)
        first, earlier = conf[now - age, :3], conf[now - age - 1, :3]
        angle = angle_between(previous[None], motion[None])
        rows.append(
            (
                np.abs(motion - previous).max(),
                np.abs(motion - 2 * previous + third[:3]).max(),
                size,
                size - size_before,
                float(motion @ previous) / max(size * size_before, 1e-6),
                abs(last[3] - before[3]),
                np.log1p(change.mean()),
                np.log1p(change.max()),
                np.log((change.mean() + 0.1) / (age * usual.mean() + 0.1)),
                np.log1p(change[grid].mean()),
                np.log(first[:, 0].min() + 1e-3),
                (first[:, 0] - first[:, 1]).min(),
                first[:, 0].min() - earlier[:, 0].min(),
                np.linalg.norm(moved - asked) * 100,
                np.linalg.norm(moved) * 100,
                np.log1p(180.0 if np.isnan(angle) else angle),
                (share - chance) / (1 - chance),
            )
        )
        difference = np.abs(act[now] - last)
        off.append(difference[:3].max() > TOLERANCE or difference[3] > max(TOLERANCE, 0.02))
    table_ = np.asarray(rows, dtype=np.float64)
    return table_, np.asarray(off), table_[:, [NAMES.index("angle"), NAMES.index("overlap")]]


# Models.


def held_out(
    parts: Sequence[tuple[str, FloatArray, NDArray[np.bool_]]], columns: Sequence[int], *, squares: bool = False
) -> FloatArray:
    """Return the score of every step by a model that has seen no episode of its task."""
    scores = []
    for task, inputs, _ in parts:
        train = [part for part in parts if part[0] != task]
        known = np.concatenate([part[1][:, columns] for part in train])
        middle, scale = known.mean(axis=0), known.std(axis=0) + 1e-9

        def made(values: FloatArray, middle: FloatArray = middle, scale: FloatArray = scale) -> FloatArray:
            plain = np.clip((values - middle) / scale, -4, 4)
            if not squares:
                return plain
            pairs = [plain[:, i] * plain[:, j] for i in range(plain.shape[1]) for j in range(i + 1)]
            return np.column_stack([plain, *pairs])

        weights = logistic(made(known), np.concatenate([part[2] for part in train]))
        scores.append(made(inputs[:, columns]) @ weights[:-1] + weights[-1])
    return np.concatenate(scores)


def dense(episode: Mapping[str, NDArray[Any]]) -> Features:
    """Return an episode as ``tune`` collects it, for the score that the package ships."""
    count = len(episode["act"])
    kinds = (ActionKind.DELTA, ActionKind.DELTA, ActionKind.DELTA, ActionKind.GRIPPER)
    frames = [signature({"image": image}) for image in episode["images"]]
    return Features(
        inputs=[GateInput("the task", 0.1 * index, frame) for index, frame in enumerate(frames)],
        times_ns=np.arange(count, dtype=np.int64),
        resets=[None] * count,
        actions=episode["act"][:, None],
        kept=list(episode["kept"].astype(np.int16)),
        visual_tokens=144,
        pruning=PruningSettings(),
        spec=ActionSpec(("x", "y", "z", "gripper"), kinds, 0.1),
        worst=[],
        confidences=episode["conf"][:, :, 0].min(axis=1).astype(np.float64),
    )


def shipped(played: Sequence[Episode], others: Sequence[Episode], age: int) -> dict[str, FloatArray]:
    """Return the score of ``calibration.score`` for every step, learnt from other tasks, and from another policy."""
    settings = Settings()
    parts = [(task, examples(dense(episode), settings)) for task, episode in played]
    foreign = learn(joined([examples(dense(episode), settings) for _, episode in others]))
    learnt = {
        task: learn(joined([known for other, known in parts if other != task])) for task in {task for task, _ in parts}
    }

    def scores(weights_of: Callable[[str], Sequence[float]]) -> FloatArray:
        every = []
        for task, known in parts:
            weights = np.asarray(weights_of(task))
            every.append(known.signs[known.ages == age][1:] @ weights[:-1] + weights[-1])  # jerk needs a step more
        return np.concatenate(every)

    return {
        "shipped: from other tasks": scores(learnt.__getitem__),
        "shipped: from the other policy": scores(lambda _: foreign),
        "shipped: from other tasks, learning on": _online(parts, age, learnt.__getitem__),
        "shipped: learning from nothing": _online(parts, age, lambda _: ()),
    }


def _online(
    parts: Sequence[tuple[str, Examples]], age: int, weights_of: Callable[[str], Sequence[float]]
) -> FloatArray:
    """Score every step by what the steps before it in its task have taught, each outcome seen."""
    state: dict[str, FloatArray] = collections.defaultdict(lambda: UNLEARNT)
    every = []
    for task, known in parts:
        allowed = CalibrationSettings(score=tuple(weights_of(task)), learning=LEARNING)
        chosen = np.flatnonzero(known.ages == age)
        for number, index in enumerate(chosen):
            found, off = known.signs[index], bool(known.off[index])
            risk = predicted_risk(found, allowed, state[task])
            if number:  # jerk needs a step more
                every.append(risk)
            state[task] = updated(state[task], found, risk, off, 1.0, LEARNING)
    return np.array(every)


def reuse_at(scores: FloatArray, off: NDArray[np.bool_], loss: float = LOSS) -> float:
    """Return the share of steps that may be reused, lowest scores first, until `loss` of all steps are off."""
    order = np.argsort(scores, kind="stable")
    spent = np.cumsum(off[order]) / len(off)
    return float((spent <= loss).mean())


def rows_of(episodes: Mapping[str, list[Episode]]) -> Iterator[dict[str, Any]]:
    """Yield one row for each policy, age and score."""
    for policy, played in episodes.items():
        for age in (1, 2):
            made = [(task, *features(episode, age)) for task, episode in played]
            parts = [(task, inputs, off) for task, inputs, off, _ in made]
            off = np.concatenate([part[2] for part in parts])
            published = np.concatenate([one[3] for one in made])
            index = {name: NAMES.index(name) for name in NAMES}
            scores = {"α": published[:, 0], "φ′": -published[:, 1]}
            # The path of the gate: what the stricter of the two thresholds needs.
            alpha = np.expm1(published[:, 0])
            scores["path of α and φ′"] = np.maximum((alpha / 40.0) ** 2, 1.0 - published[:, 1])
            for group, names in GROUPS.items():
                scores[f"learnt: {group}"] = held_out(parts, [index[name] for name in names])
            everything = list(range(len(NAMES)))
            without = [index[name] for name in NAMES if name not in GROUPS["tokens"]]
            scores["learnt: all but tokens"] = held_out(parts, without)
            scores["learnt: all"] = held_out(parts, everything)
            scores["learnt: all, with products"] = held_out(parts, everything, squares=True)
            others = [episode for other, known in episodes.items() if other != policy for episode in known]
            scores |= shipped(played, others, age) if others else {}
            lengths = np.cumsum([len(part[2]) for part in parts])[:-1]
            for name, values in scores.items():
                low, high = _interval(np.split(values, lengths), np.split(off, lengths))
                yield {
                    "policy": policy,
                    "age": age,
                    "episodes": len(played),
                    "steps": len(off),
                    "off": float(off.mean()),
                    "score": name,
                    "auc": auc(values, off),
                    "auc_low": low,
                    "auc_high": high,
                    "reuse": reuse_at(values, off),
                    "coin": min(LOSS / float(off.mean()), 1.0),
                    "oracle": min(1.0 - float(off.mean()) + LOSS, 1.0),
                }


def _interval(scores: Sequence[FloatArray], off: Sequence[NDArray[np.bool_]]) -> tuple[float, float]:
    """95 % bootstrap interval of the AUC, episodes drawn whole: steps of one are not independent."""
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        drawn = rng.integers(0, len(scores), len(scores))
        found.append(auc(np.concatenate([scores[i] for i in drawn]), np.concatenate([off[i] for i in drawn])))
    low, high = np.nanquantile(found, (0.025, 0.975))
    return float(low), float(high)


def page(results: Mapping[str, Any]) -> str:
    """Return the table."""
    lines = [
        [
            row["policy"],
            str(row["age"]),
            row["score"],
            f"{row['auc']:.2f} ({row['auc_low']:.2f}-{row['auc_high']:.2f})",
            f"{100 * row['reuse']:.0f} %",
            f"{100 * row['coin']:.0f} %",
            f"{100 * row['oracle']:.0f} %",
            f"{100 * row['off']:.1f} %",
            f"{row['steps']} in {row['episodes']}",
        ]
        for row in results["rows"]
    ]
    head = [
        "policy",
        "age",
        "score",
        "AUC (95 %)",
        "reuse at 5 % off",
        "blind coin",
        "oracle",
        "off",
        "steps, episodes",
    ]
    return f"{results['meta']['device']}; tolerance {TOLERANCE}; each task is held out in turn.\n\n{table(head, lines)}"


def read(folder: Path) -> dict[str, list[Episode]]:
    """Return the recorded episodes of each policy, with their tasks.

    Raises:
        FlashVLAError: There are none, or one is broken.
    """
    found: dict[str, list[Episode]] = {}
    for path in sorted(folder.glob("*_*_*.npz")):
        policy, task = path.stem.split("_")[:2]
        try:
            with np.load(path) as stored:
                found.setdefault(policy, []).append((task, dict(stored)))
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise FlashVLAError(f"{path} is no whole episode ({error}): delete it and record again") from error
    if not found:
        raise FlashVLAError(f"{folder} holds no recorded episodes: python -m benchmarks.score record {folder}")
    return found


def main() -> int:
    """Record, or analyse what was recorded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "analyse"))
    parser.add_argument("data", type=Path, help="folder of recorded episodes")
    parser.add_argument("--seeds", type=int, default=8, help="episodes of each task and policy (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    args = parser.parse_args()

    def work() -> None:
        if args.what == "record":
            record(args.data, range(args.seeds))
            return
        rows = list(rows_of(read(args.data)))
        made = meta(processor_name(), command="score")
        publish(page, made, rows, args.json)

    return exit_code(work)


if __name__ == "__main__":
    raise SystemExit(main())

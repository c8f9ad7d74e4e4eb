"""Which tokens each pruning method keeps and what that does to the action.

Run as ``python -m flashvla_ros.bench.token_choice``. Dense episodes give frames. On each, every method chooses at every
layer and budget, and the action of the pruned model is compared with that of the dense one: open loop, so that all
methods answer the same frames. The model is fed the dense action's tokens, so one wrong dimension does not spoil those
after it. Nothing here says what a robot would do with it: that is closed loop.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from flashvla_ros.bench.token_candidates import CANDIDATES
from flashvla_ros.bench.token_frames import WINDOW, Frame, windows
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.provenance import checkpoint_fingerprint
from flashvla_ros.core.results import write_results
from flashvla_ros.core.settings import ModelSettings, PruningSettings
from flashvla_ros.core.types import ImageArray
from flashvla_ros.sim.tasks import TASKS
from flashvla_ros.vla.decoding import decode, prefill
from flashvla_ros.vla.policy import OpenVLAPolicy, checkpoint_folder
from flashvla_ros.vla.pruning.probe import LayerView, run_and_view
from flashvla_ros.vla.pruning.select import METHODS, Selector, kept_count
from flashvla_ros.vla.pruning.temporal import patch_cosines

_SHOWS = 0.1  # a token shows what covers at least this share of its patch
_TILE, _GAP, _LABEL = 216, 6, 22  # pixels of the picture


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method at one layer and budget."""

    method: str
    layer: int
    keep_ratio: float


@dataclasses.dataclass
class Tally:
    """What one cell did on every frame so far.

    Attributes:
        errors: [frames][D] differences from the dense action, normalised.
        surprise: [frames] by how much less likely the dense tokens became, in nats a token.
        overlaps: [frames] chance-corrected overlap of the sets of two consecutive frames.
        robot, thing: [frames] shares of the kept tokens that show the robot and the object.
        found: [frames] share of the tokens that show the object which were kept; where there are any.
    """

    errors: list[NDArray[np.float64]] = dataclasses.field(default_factory=list)
    surprise: list[float] = dataclasses.field(default_factory=list)
    overlaps: list[float] = dataclasses.field(default_factory=list)
    robot: list[float] = dataclasses.field(default_factory=list)
    thing: list[float] = dataclasses.field(default_factory=list)
    found: list[float] = dataclasses.field(default_factory=list)

    def row(self, cell: Cell, tokens: int) -> dict[str, Any]:
        """Return the row of the table."""
        means = np.array([error.mean() for error in self.errors])
        return {
            **dataclasses.asdict(cell),
            "kept": kept_count(cell.keep_ratio, tokens),
            "frames": len(means),
            "error_mean": float(means.mean()),
            "error_p95": float(np.quantile(means, 0.95)),
            "surprise": float(np.mean(self.surprise)),
            "overlap": float(np.mean(self.overlaps)) if self.overlaps else None,
            "on_robot": float(np.mean(self.robot)),
            "on_object": float(np.mean(self.thing)),
            "object_kept": float(np.mean(self.found)) if self.found else None,
        }


class Comparison:
    """Runs every method on windows of frames and sums up.

    Args:
        policy: The checkpoint.
        methods: Name to rule.
        layers: Values of ``pruning.layer``.
        ratios: Values of ``pruning.keep_ratio``, below 1.
    """

    def __init__(
        self, policy: OpenVLAPolicy, methods: Mapping[str, Selector], layers: Sequence[int], ratios: Sequence[float]
    ) -> None:
        self.policy = policy
        self.methods = methods
        self.tallies = {Cell(*key): Tally() for key in itertools.product(methods, layers, ratios)}
        self.base: list[tuple[float, float]] = []
        self._layers, self._ratios = layers, ratios

    @torch.inference_mode()
    def add(self, window: Sequence[Frame]) -> None:
        """Let every method choose on the last two frames of a window, and act on the last."""
        model, frame = self.policy.model, window[-1]
        input_ids = torch.tensor([self.policy.prompts(frame.observation.instruction)])
        squares = [self.policy.processor.to_square(one.image) for one in window]
        visual = [model.visual_tokens(self.policy.processor.normalize(square)) for square in squares[1:]]
        start = prefill(model, visual[-1], input_ids, self.policy.codec.size - 1, PruningSettings(method="none"))
        dense = decode(model, start, self.policy.codec.size)[None]
        likely = model.action_logits(visual[-1], input_ids, dense).log_softmax(dim=-1)
        self.base.append((float((frame.robot >= _SHOWS).mean()), float((frame.thing >= _SHOWS).mean())))
        for layer in self._layers:
            views = [
                self._view(tokens, input_ids, layer, one, picture, before)
                for tokens, one, picture, before in zip(visual, window[1:], squares[1:], squares[:-1], strict=True)
            ]
            for ratio in self._ratios:
                self._compare(layer, ratio, views, visual[-1], input_ids, dense, likely, frame)

    def _view(
        self, visual: Tensor, input_ids: Tensor, layer: int, frame: Frame, picture: Tensor, before: Tensor
    ) -> LayerView:
        model, count = self.policy.model, visual.shape[1]
        hidden = model.embed(visual, input_ids)
        rotary = model.rotary(hidden, torch.arange(hidden.shape[1])[None])
        cosines = patch_cosines(picture.numpy(), before.numpy(), round(count**0.5))
        key, mask = round(frame.observation.stamp_s * 1e9), model.causal_mask(hidden)
        similarity = torch.from_numpy(cosines)
        return run_and_view(model, hidden, count, layer, rotary, mask, key=key, similarity=similarity)[1]

    def _compare(
        self,
        layer: int,
        ratio: float,
        views: Sequence[LayerView],
        visual: Tensor,
        input_ids: Tensor,
        dense: Tensor,
        likely: Tensor,
        frame: Frame,
    ) -> None:
        count = visual.shape[1]
        k, settings = kept_count(ratio, count), PruningSettings()
        sets = [torch.stack([rule(view, k, settings) for rule in self.methods.values()]) for view in views]
        logits = self._pruned(visual, input_ids, dense, sets[-1], layer).log_softmax(dim=-1)
        codec = self.policy.codec
        expected = codec.decode(dense[0].numpy())
        for number, name in enumerate(self.methods):
            tally, kept = self.tallies[Cell(name, layer, ratio)], sets[-1][number]
            tally.errors.append(np.abs(codec.decode(logits[number].argmax(dim=-1).numpy()) - expected))
            change = (likely[0] - logits[number]).gather(1, dense.T)
            tally.surprise.append(float(change.mean()))
            shared = len(set(kept.tolist()) & set(sets[0][number].tolist())) / k
            tally.overlaps.append((shared - k / count) / (1 - k / count))
            tally.robot.append(float((frame.robot[kept] >= _SHOWS).mean()))
            shown = frame.thing >= _SHOWS
            tally.thing.append(float(shown[kept].mean()))
            if shown.any():
                tally.found.append(float(shown[kept].sum() / shown.sum()))

    def _pruned(self, visual: Tensor, input_ids: Tensor, dense: Tensor, keep: Tensor, layer: int) -> Tensor:
        """[methods, D, vocabulary], all methods in one pass."""
        batch = len(keep)
        expanded = (tensor.expand(batch, *tensor.shape[1:]) for tensor in (visual, input_ids, dense))
        return self.policy.model.action_logits(*expanded, keep=keep, layer=layer)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each cell."""
        return [tally.row(cell, self.policy.visual_tokens) for cell, tally in self.tallies.items()]

    @torch.inference_mode()
    def picture(self, examples: Sequence[Sequence[Frame]], layer: int, ratio: float) -> ImageArray:
        """Return what each method keeps of the last frame of some windows: a row for each method."""
        k, settings = kept_count(ratio, self.policy.visual_tokens), PruningSettings()
        columns = []
        for window in examples:
            squares = [self.policy.processor.to_square(one.image) for one in window[-2:]]
            visual = self.policy.model.visual_tokens(self.policy.processor.normalize(squares[1]))
            ids = torch.tensor([self.policy.prompts(window[-1].observation.instruction)])
            view = self._view(visual, ids, layer, window[-1], squares[1], squares[0])
            tiles = [_tile(window[-1], rule(view, k, settings).numpy(), view) for rule in self.methods.values()]
            columns.append(tiles)
        return _sheet(columns, list(self.methods))


def _tile(frame: Frame, kept: NDArray[np.int64], view: LayerView) -> ImageArray:
    count = len(view.embeddings)
    mask = np.zeros(count, dtype=np.float32)
    mask[kept] = 1.0
    side = round(count**0.5)
    size = (_TILE, _TILE)
    bright = cv2.resize(mask.reshape(side, side), size, interpolation=cv2.INTER_NEAREST)[..., None]
    image = cv2.resize(frame.image, size, interpolation=cv2.INTER_CUBIC)
    return (image * (0.22 + 0.78 * bright)).astype(np.uint8)


def _sheet(columns: Sequence[Sequence[ImageArray]], names: Sequence[str]) -> ImageArray:
    rows = []
    for tiles, name in zip(zip(*columns, strict=True), names, strict=True):
        row = np.hstack([part for tile in tiles for part in (np.full((_TILE, _GAP, 3), 255, np.uint8), tile)][1:])
        label = np.full((_LABEL, row.shape[1], 3), 255, dtype=np.uint8)
        cv2.putText(label, name, (2, _LABEL - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        rows += [label, row]
    return np.vstack(rows)


def main() -> None:
    """Measure and print a table; write JSON and a picture where asked to."""
    args = _arguments()
    torch.set_num_threads(1)
    settings = ModelSettings(checkpoint=str(args.checkpoint or ""), device="cpu", dtype="float32", threads=1)
    try:
        policy = OpenVLAPolicy.load(settings)
        depth = len(policy.model.layers)
        if beyond := [layer for layer in args.layers if layer not in range(depth)]:
            raise FlashVLAError(f"--layers must be from 0 to {depth - 1} with this checkpoint, got {beyond[0]}")
        comparison = Comparison(policy, _rules(args.methods, args.candidates), args.layers, args.ratios)
        examples = _run(comparison, args)
        if args.picture:
            picture = comparison.picture(examples, args.picture_layer, args.ratios[0])
            args.picture.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(args.picture), picture[..., ::-1], (cv2.IMWRITE_PNG_COMPRESSION, 9))
        if args.json:
            meta = {"checkpoint": checkpoint_fingerprint(checkpoint_folder(settings)), "options": vars(args)}
            robot, thing = np.mean(comparison.base, axis=0)
            write_results(args.json, {**meta, "all_on_robot": robot, "all_on_object": thing}, comparison.rows())
    except FlashVLAError as error:
        sys.exit(f"error: {error}")
    print("\n".join(table(comparison.rows())))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="folder (default: the demo policy)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["drawer-open", "drawer-close"], metavar="TASK")
    parser.add_argument("--episodes", type=int, default=2, help="seeds of each task, from --seed on (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="first seed (%(default)s)")
    parser.add_argument("--every", type=int, default=10, help="steps from one measured frame to the next (%(default)s)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument(
        "--candidates", nargs="*", choices=CANDIDATES, metavar="NAME", help="add variations that were tried, or all"
    )
    parser.add_argument("--layers", nargs="+", type=int, default=[0, 1, 2, 3], help="pruning.layer (%(default)s)")
    parser.add_argument(
        "--ratios", nargs="+", type=float, default=[0.625, 0.375, 0.25], help="keep_ratio (%(default)s)"
    )
    parser.add_argument("--expert", action="store_true", help="let the scripted expert drive instead of the policy")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="kept tokens of each method, one frame a task")
    parser.add_argument("--picture-layer", type=int, default=2, metavar="LAYER", help="pruning.layer (%(default)s)")
    args = parser.parse_args()
    if args.every < WINDOW:
        parser.error(f"--every must be at least {WINDOW}, got {args.every}")
    if not all(0.0 < ratio < 1.0 for ratio in args.ratios):
        parser.error(f"--ratios must lie between 0 and 1, got {args.ratios}")
    return args


def _rules(methods: Iterable[str], candidates: Sequence[str] | None) -> dict[str, Selector]:
    added = () if candidates is None else candidates or CANDIDATES
    return {name: METHODS[name].select for name in methods} | {name: CANDIDATES[name] for name in added}


def _run(comparison: Comparison, args: argparse.Namespace) -> list[list[Frame]]:
    """Measure all windows; return the third of each task's first episode, or the last before it, for the picture."""
    seeds = range(args.seed, args.seed + args.episodes)
    examples: dict[str, list[Frame]] = {}
    stream = windows(comparison.policy, args.tasks, seeds, args.every, expert=args.expert)
    for window in tqdm(stream, unit="frame", disable=not sys.stderr.isatty()):
        comparison.add(window)
        if window[0].seed == args.seed and window[0].step <= 2 * args.every:
            examples[window[0].task] = window
    return list(examples.values())


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a Markdown table, the least error first within each layer and budget."""
    lines = [
        "| layer | kept | method | error | p95 | surprise [nats] | φ′ | on robot | on object | object kept |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["layer"], -row["kept"], row["error_mean"])):
        cells = [
            *(str(row[name]) for name in ("layer", "kept", "method")),
            *(f"{row[name]:.3f}" for name in ("error_mean", "error_p95")),
            *(f"{row[name]:.2f}" for name in ("surprise", "overlap")),
            *("" if row[name] is None else f"{row[name]:.0%}" for name in ("on_robot", "on_object", "object_kept")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()

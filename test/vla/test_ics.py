"""On the CPU, ICS keeps the sets of a singular value decomposition in float64, with every engine and any draft."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from checkpoints import tiny_config, write_checkpoint
from torch import Tensor

from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import ModelSettings, PruningSettings
from flashvla_ros.core.types import Draft, ImageArray, Observation
from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy
from flashvla_ros.vla.pruning import select
from flashvla_ros.vla.pruning.scores import information_contribution

RATIOS = (0.625, 0.5, 0.25)


def by_svd(rows: Tensor, rank: int = 0) -> Tensor:
    left, values, _ = torch.linalg.svd(rows.double(), full_matrices=False)
    return (left * values)[:, : rank or None].abs().sum(dim=1)


def decaying(count: int, width: int, decades: float, seed: int) -> Tensor:
    """Rows whose singular values fall from 1 to 10^-decades, as those of attention's output do."""
    generator = torch.Generator().manual_seed(seed)
    size = min(count, width)
    left, right = (torch.linalg.qr(torch.randn(n, size, generator=generator)).Q for n in (count, width))
    return left @ torch.diag(torch.logspace(0, -decades, size)) @ right.T


@pytest.mark.parametrize("decades", [1, 3, 5])
@pytest.mark.parametrize("shape", [(64, 64), (36, 96), (49, 80), (256, 64), (256, 384)], ids=str)
def test_sets_are_those_of_the_decomposition(shape, decades):
    for seed in range(6):
        rows = decaying(*shape, decades, seed)
        scores, exact = information_contribution(rows), by_svd(rows)
        torch.testing.assert_close(scores, exact, rtol=1e-6, atol=1e-8)
        for ratio in RATIOS:
            k = select.kept_count(ratio, len(rows))
            assert torch.equal(select.top_k(scores, k), select.top_k(exact, k)), (seed, ratio)


def test_a_rank_counts_the_largest_singular_values():
    rows = decaying(64, 96, 5, seed=0)
    for rank in (1, 4, 16, 64):
        torch.testing.assert_close(information_contribution(rows, rank), by_svd(rows, rank), rtol=1e-6, atol=1e-8)


def pictures() -> Iterator[ImageArray]:
    """One colour, noise, and a scene of few colours: flat ones make the worst conditioned outputs."""
    yield np.zeros((64, 64, 3), dtype=np.uint8)
    yield np.full((48, 64, 3), (200, 30, 30), dtype=np.uint8)
    random = np.random.default_rng(0)
    yield random.integers(0, 256, (240, 320, 3), dtype=np.uint8)
    scene = np.full((240, 320, 3), 90, dtype=np.uint8)
    scene[60:140, 100:180] = (220, 40, 40)
    yield scene
    ramp = np.linspace(0, 255, 320, dtype=np.uint8)
    yield np.broadcast_to(ramp[None, :, None], (240, 320, 3)).copy()


@pytest.mark.parametrize("method", ["ics", "ics_hidden", "ics_values"])
def test_engines_and_drafts_keep_the_sets_of_the_decomposition(method, tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path, tiny_config(image_size=168))  # 144 tokens of width 32
    settings = ModelSettings(checkpoint=str(folder), device="cpu", dtype="float32", threads=1)
    seen: list[Tensor] = []

    def watched(tokens: Tensor, rank: int = 0) -> Tensor:
        seen.append(tokens)
        return information_contribution(tokens, rank)

    monkeypatch.setattr(select, "information_contribution", watched)
    eager, static = (OpenVLAPolicy.load(dataclasses.replace(settings, engine=engine)) for engine in ("eager", "static"))
    for number, image in enumerate(pictures()):
        pruning = PruningSettings(method=method, keep_ratio=RATIOS[number % len(RATIOS)])
        observation = Observation({"camera": image}, "open the drawer", stamp_s=0.0)
        seen.clear()
        first = eager.infer(Request(observation, pruning))
        exact = select.top_k(by_svd(seen[0]), len(first.kept))
        assert first.kept.tolist() == exact.tolist()
        for policy in (eager, static):
            for draft in (None, Draft(first.tokens), Draft(first.tokens[::-1].copy())):
                again = policy.infer(Request(observation, pruning, draft=draft))
                assert again.kept.tolist() == first.kept.tolist()
                assert again.tokens.tolist() == first.tokens.tolist()

"""Work counted on the real inference against the formulas, and the device's best rates. No test looks at times."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest
import torch

from flashvla_ros.bench import energy
from flashvla_ros.bench.measure import Prober, Roofline, Work, count_stages
from flashvla_ros.bench.trace import load_observations
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import PruningSettings
from flashvla_ros.core.types import Draft
from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy
from flashvla_ros.vla.config import model_size

NONE, ICS = PruningSettings(method="none"), PruningSettings(method="ics", keep_ratio=0.5)
FRAMES = load_observations("open the drawer")


def counted(policy: OpenVLAPolicy, pruning: PruningSettings, draft: Draft | None = None) -> dict[str, Work]:
    return count_stages(policy, Request(FRAMES[1], pruning, None, draft))


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("kept", [16, 8])
@pytest.mark.parametrize("agreeing", [None, 0, 2, 4])
def test_counted_flops_are_those_of_the_formula(policy, layer, kept, agreeing):
    pruning = PruningSettings(method="ics", keep_ratio=kept / 16, layer=layer)
    own = policy.infer(Request(FRAMES[1], pruning)).tokens
    guess = np.where(np.arange(4) < (agreeing or 0), own, own - 1)
    works = counted(policy, pruning, None if agreeing is None else Draft(guess))
    scored = works.pop("scoring", Work()).flops
    works.pop("preprocess")
    drafted, settled = (0, 1) if agreeing is None else (3, min(agreeing + 1, 4))
    text = len(policy.prompts(FRAMES[1].instruction))
    formula = model_size(policy.model.config).inference_flops(kept, layer, text, 4, drafted, settled)
    assert sum(work.flops for work in works.values()) == formula
    assert scored == (0 if kept == 16 else 2 * 16 * 16 * 32)  # the Gram matrix; eigh is not counted


def test_counted_bytes_are_those_of_weights_and_cache(policy):
    works = counted(policy, NONE)
    model, passes = policy.model, policy.action_size - 1
    layers = sum(parameter.nbytes for parameter in model.layers.parameters())
    tail = model.language_model.model.norm.weight.nbytes + model.language_model.lm_head.weight.nbytes
    row = model.language_model.model.embed_tokens.weight[0].nbytes
    assert works["decode"].weights == passes * (layers + tail + row)
    vision = sum(p.nbytes for p in [*model.towers.parameters(), *model.projector.parameters()])
    assert 0.9 * vision < works["vision"].weights <= 1.1 * vision
    length = model.config.visual_tokens + len(policy.prompts(FRAMES[1].instruction))
    cache = sum(2 * 4 * 4 * 32 * (length + step) for step in range(passes))  # keys and values, 4 layers, float32
    assert cache <= works["decode"].inputs <= 1.2 * cache


def test_pruning_takes_work_away_and_scoring_is_a_stage_of_its_own(policy):
    dense, pruned = counted(policy, NONE), counted(policy, ICS)
    assert list(pruned) == ["preprocess", "vision", "prefill", "scoring", "decode"] and "scoring" not in dense
    assert pruned["prefill"].flops < dense["prefill"].flops
    assert pruned["prefill"].activations < dense["prefill"].activations
    assert pruned["vision"] == dense["vision"]


def test_the_count_does_not_change_the_result_and_ends_with_the_run(policy):
    before = policy.infer(Request(FRAMES[1], ICS))
    works = counted(policy, ICS)
    np.testing.assert_array_equal(policy.infer(Request(FRAMES[1], ICS)).tokens, before.tokens)
    assert counted(policy, ICS) == works


def test_roofline_is_positive_and_keeps_the_best(policy):
    roofline = Roofline(flops_per_s=1e30)
    Prober(policy.backend, matrix=64, stream_bytes=1 << 20).probe(roofline)
    assert roofline.flops_per_s == 1e30
    assert roofline.copy_bytes_per_s > 0 and roofline.gemv_bytes_per_s > 0
    assert roofline.bytes_per_s == max(roofline.copy_bytes_per_s, roofline.gemv_bytes_per_s)


def test_least_time_is_that_of_arithmetic_or_of_memory():
    roofline = Roofline(flops_per_s=100.0, copy_bytes_per_s=10.0, gemv_bytes_per_s=5.0)
    assert roofline.least_s(Work(flops=300, weights=10, inputs=10)) == 3.0
    assert roofline.least_s(Work(flops=300, weights=40, inputs=10, activations=999)) == 5.0


class Driver:
    """Counts 1.5 J whenever it is asked; a GPU is another one where its name differs."""

    def nvmlInit_v2(self) -> int:  # noqa: N802 - NVML's names
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, _handle: Any) -> int:  # noqa: N802
        return uuid != b"GPU-12ab"

    def nvmlDeviceGetTotalEnergyConsumption(self, _handle: Any, used: Any) -> int:  # noqa: N802
        used._obj.value += 1500
        return 0


def counter_of(monkeypatch: pytest.MonkeyPatch, uuid: str, library: Any) -> energy.Counter | None:
    monkeypatch.setattr("ctypes.CDLL", library)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: types.SimpleNamespace(uuid=uuid))
    return energy.energy_counter(torch.device("cuda", 0))


def test_energy_is_read_in_joules_of_the_gpu_that_runs_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    read = counter_of(monkeypatch, "12ab", lambda _: driver)
    assert read is not None
    assert read() - read() == -1.5
    assert counter_of(monkeypatch, "34cd", lambda _: driver) is None


def test_no_driver_and_no_gpu_count_no_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    assert counter_of(monkeypatch, "12ab", missing) is None
    assert energy.energy_counter(torch.device("cpu")) is None


def test_the_energy_of_a_step_is_that_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_SECONDS", 0.02)
    ran: list[int] = []
    used = energy.joules_a_step(lambda: ran.append(1), lambda: 3.0 * len(ran), lambda: None)
    assert used == 3.0
    assert ran

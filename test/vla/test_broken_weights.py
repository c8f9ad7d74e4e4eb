"""The real policy with broken weights: no engine and no path of decoding makes a command of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flashvla_ros.control.stepper import Stepper
from flashvla_ros.control.worker import State, Worker
from flashvla_ros.core.errors import ActionError, CheckpointError
from flashvla_ros.core.paths import share_path
from flashvla_ros.core.policy import Request
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import ModelSettings, PruningSettings, Settings
from flashvla_ros.core.types import ActionKind, ActionSpec, Draft, Observation
from flashvla_ros.doctor.checkpoint import check_checkpoint
from flashvla_ros.doctor.explain import explain
from flashvla_ros.doctor.finding import Level
from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy
from flashvla_ros.vla.loading import load_policy
from flashvla_ros.vla.model import NOTHING, likeliest

SEEN = Observation({"camera": np.full((96, 96, 3), 90, dtype=np.uint8)}, "open the drawer", stamp_s=0.0)
EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
NORM = "language_model.model.norm.weight"
QUERIES = "language_model.model.layers.0.self_attn.q_proj.weight"
Change = Callable[[dict[str, Tensor]], object]


def vanishing(tensors: dict[str, Tensor]) -> None:
    """Not zero, but each product with them is."""
    tensors[NORM].fill_(1e-45)
    tensors[HEAD].mul_(1e-3)


def huge(tensors: dict[str, Tensor]) -> None:
    for tensor in tensors.values():
        tensor.mul_(1e30)


def one_value(name: str, value: float) -> Change:
    return lambda tensors: tensors[name][0, :1].fill_(value)


def demo(folder: Path, change: Change) -> ModelSettings:
    """Copy the demo policy and change its weights."""
    shutil.copytree(share_path("models", "demo"), folder)
    tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return ModelSettings(checkpoint=str(folder), device="cpu", dtype="float32", threads=1)


def refused(settings: ModelSettings, text: str) -> None:
    """Expect that the policy does not load, and that the doctor says the same."""
    with pytest.raises(CheckpointError, match=text) as refusal:
        OpenVLAPolicy.load(settings)
    found = {one.name: one for one in check_checkpoint(Path(settings.checkpoint), Settings(model=settings))}
    assert found["weights"].level is Level.FAILURE
    assert found["weights"].text == str(refusal.value)


@pytest.mark.parametrize("name", [HEAD, QUERIES])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_do_not_load(name, value, tmp_path):
    settings = demo(tmp_path / "broken", one_value(name, value))
    refused(settings, f"not finite in float32, in {name}: copy the file again")


@pytest.mark.parametrize("names", [[EMBEDDING], [NORM], [HEAD], []], ids=["embedding", "norm", "head", "all"])
def test_weights_of_zeros_do_not_load(names, tmp_path):
    settings = demo(tmp_path / "broken", lambda all_: [all_[name].zero_() for name in names or all_])
    named = ", ".join(names or [EMBEDDING, NORM, HEAD])
    refused(settings, f"has nothing but zeros in {named}: copy the file again")


@pytest.fixture(params=["eager", "static"])
def engine(request) -> str:
    return request.param


def answers(policy: OpenVLAPolicy, draft: Draft | None, method: str) -> None:
    policy.infer(Request(SEEN, PruningSettings(method=method), draft=draft))


@pytest.mark.parametrize("change", [vanishing, huge])
def test_a_model_that_says_nothing_makes_no_action(change, engine, tmp_path):
    settings = demo(tmp_path / "broken", change)
    policy = OpenVLAPolicy.load(ModelSettings(**{**vars(settings), "engine": engine}))
    for method in ("none", "ics"):
        for draft in (None, Draft(np.array([1100, 1100, 1100, 1100]))):
            with pytest.raises(ActionError, match="the logits of action token 0 are not finite or all equal"):
                answers(policy, draft, method)


def test_a_fault_behind_the_first_token_is_found(engine):
    """The table's row of the first token is read when the second is decoded; with a draft the prefill reads it."""
    policy = OpenVLAPolicy.load(ModelSettings(device="cpu", dtype="float32", threads=1, engine=engine))
    good = policy.infer(Request(SEEN, PruningSettings(method="none"))).tokens
    table = policy.model.language_model.model.embed_tokens.weight
    table[good[0]] = float("nan")
    wrong = Draft(np.where(np.arange(4) == 3, good - 1, good))
    for draft, token in ((None, 1), (Draft(good), 0), (wrong, 0)):  # masked rows count 0 times NaN, which is NaN
        with pytest.raises(ActionError, match=f"the logits of action token {token} "):
            answers(policy, draft, "none")


def test_a_node_refuses_it_before_it_is_active_and_the_doctor_finds_it(tmp_path):
    settings = demo(tmp_path / "broken", vanishing)
    with pytest.raises(CheckpointError, match=r"broken cannot be used: the logits of action token 0"):
        load_policy(Settings(model=settings))
    (found,) = explain(Path(settings.checkpoint), Settings(model=settings))
    assert found.level is Level.FAILURE
    assert found.text.startswith("the logits of action token 0")


def test_the_robot_stops(engine):
    policy = OpenVLAPolicy.load(ModelSettings(device="cpu", dtype="float32", threads=1, engine=engine))
    policy.model.language_model.lm_head.weight[7] = float("nan")
    spec = ActionSpec(("x", "y", "z", "gripper"), (ActionKind.DELTA,) * 3 + (ActionKind.GRIPPER,), 0.1)
    faults: list[Exception] = []
    steps: list[object] = []
    settings = Settings()
    worker = Worker(
        Stepper(policy, spec),
        lambda: settings,
        on_step=steps.append,
        on_stop=lambda _stop: None,
        on_fault=faults.append,
    )
    worker.start()
    worker.post(SEEN)
    for _ in range(200):
        if faults:
            break
        worker._closed.wait(0.05)
    assert worker.close()
    assert not steps
    assert isinstance(faults[0], ActionError)
    assert (worker.state, worker.stopped_by.cause) == (State.STOPPED, Reason.FAULT)


def test_the_choice_is_the_largest_of_finite_and_different_logits():
    rows = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 0.0], *([1.0, bad, 0.0] for bad in (np.nan, np.inf, -np.inf))])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert likeliest(rows.to(dtype)).tolist() == [1, NOTHING, NOTHING, NOTHING, NOTHING]

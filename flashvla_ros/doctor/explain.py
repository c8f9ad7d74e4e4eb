"""``flashvla-ros doctor --explain``: what a step does with these settings on this machine, and what each part costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flashvla_ros.bench.measure import describe_backend, gate_seconds
from flashvla_ros.bench.models import INSTRUCTION
from flashvla_ros.bench.rounds import Series, time_in_turn
from flashvla_ros.bench.run import seen_by
from flashvla_ros.bench.trace import load_observations
from flashvla_ros.core.errors import FlashVLAError, SettingsError
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import Draft, Observation
from flashvla_ros.doctor.finding import Finding, Level, ok
from flashvla_ros.vla.arch.table import load
from flashvla_ros.vla.backend import Backend
from flashvla_ros.vla.checked import CheckedPolicy
from flashvla_ros.vla.step import VLAPolicy

_ROUNDS = 5
# What a machine may refuse.
_ASKED: Mapping[str, Any] = {"device": "cuda", "attention": "flash_attention_2", "engine": "compiled"}


def explain(folder: Path, settings: Settings) -> Iterator[Finding]:
    """Load a checkpoint, run it on recorded frames with and without what makes it fast, and say what each part buys."""
    model = dataclasses.replace(settings.model, checkpoint=str(folder))
    try:
        policy = load(model)
        frames = [seen_by(policy, seen) for seen in load_observations(INSTRUCTION)]
        yield _exact(policy, settings, frames[0])
        series = _timed(policy, settings, frames[:2])
    except FlashVLAError as error:
        yield Finding.failure_of("explain", error)
        return
    as_set = series["as set"]
    about = "{engine} engine, {attention} in {dtype} on {device}, {threads} threads".format(
        **describe_backend(policy.backend)
    )
    yield ok("step", f"{_ms(as_set.array)}: {_stages(as_set)}; {about}, median of {_ROUNDS}")
    yield _pruned(series, settings)
    yield _drafted(policy, series, settings)
    yield _reused(frames, as_set, settings)
    for name, value in _ASKED.items():
        try:
            Backend.resolve(dataclasses.replace(model, **{name: value}))
        except SettingsError as error:
            yield ok("refused", str(error))


def _exact(policy: VLAPolicy, settings: Settings, frame: Observation) -> Finding:
    engine = policy.backend.engine
    if engine == "eager":
        return ok("exact", "the engine eager runs the plain modules: it is the reference")
    checked = CheckedPolicy(policy)
    checked.infer(Request(frame, settings.pruning))
    if checked.difference:
        return Finding("exact", Level.FAILURE, checked.difference, "set model.engine to eager")
    return ok("exact", f"the engine {engine} answers a recorded frame as the reference does, with a draft too")


def _timed(policy: VLAPolicy, settings: Settings, frames: Sequence[Observation]) -> dict[str, Series]:
    """Time the settings, the same without dropping a token, and the same with a draft that is right, in turn."""
    dense = dataclasses.replace(settings.pruning, drop=False)
    policy.warm_up(settings.pruning, INSTRUCTION)
    drafts = {seen.stamp_s: Draft(policy.infer(Request(seen, settings.pruning)).tokens) for seen in frames}
    runners = {
        "as set": lambda seen: policy.infer(Request(seen, settings.pruning)),
        "dense": lambda seen: policy.infer(Request(seen, dense)),
        "drafted": lambda seen: policy.infer(Request(seen, settings.pruning, None, drafts[seen.stamp_s])),
    }
    backend = policy.backend
    on_cpu = backend.device.type == "cpu"
    return time_in_turn(runners, frames, _ROUNDS, backend.synchronize, lambda _round: None, cpu=on_cpu)


def _pruned(series: dict[str, Series], settings: Settings) -> Finding:
    pruning, last = settings.pruning, series["as set"].inferences[-1]
    if last.kept is None:
        return ok("pruned", "nothing: pruning.method is none, and the gate has no sets of tokens to compare")
    text = f"{last.visual_tokens - len(last.kept)} of {last.visual_tokens} visual tokens from layer {pruning.layer} on"
    if not pruning.drop:
        return ok("pruned", f"nothing: {text} are left out of the gate's sets alone (pruning.drop is false)")
    text += f", by {pruning.method}: {_ms(series['as set'].array)} in place of {_ms(series['dense'].array)}"
    slower = np.median(series["as set"].array) >= np.median(series["dense"].array)
    return ok("pruned", f"{text}{', which buys no time here' if slower else ''}")


def _drafted(policy: VLAPolicy, series: dict[str, Series], settings: Settings) -> Finding:
    if not series["drafted"].inferences[-1].draft_tokens:
        passes = "one pass" if policy.decoded <= 1 else "passes that take no draft"
        return ok("drafted", f"nothing: an action comes from {passes}")
    times = f"{_ms(series['as set'].array)} without a draft, {_ms(series['drafted'].array)} with one that is right"
    if settings.decode.mode != "draft":
        return ok("drafted", f"nothing: decode.mode is {settings.decode.mode}; {times}")
    near = settings.decode.accept_bins
    kind = f"a miss by {near} bins is accepted, so the action may differ" if near else "the action is greedy's"
    return ok("drafted", f"the last action's tokens, {kind}: {times}")


def _reused(frames: Sequence[Observation], series: Series, settings: Settings) -> Finding:
    gate, last = settings.gate, series.inferences[-1]
    if gate.mode == "off":
        return ok("reused", "nothing: gate.mode is off, and the model runs whenever it is due")
    if last.kept is None and not gate.tokenless_angle_deg:
        return ok("reused", "nothing: there are no sets of tokens to compare, and gate.tokenless_angle_deg is 0")
    rule = f"angle below {gate.max_angle_deg:g}° and overlap of {gate.delta:g} or more"
    if last.kept is None:
        rule = f"angle below {min(gate.tokenless_angle_deg, gate.max_angle_deg):g}°"
    if gate.calibration == "online":
        rule += " at first (gate.calibration is online)"
    guards = " and every guard" if gate.mode == "guarded" else ""
    cost = _ms(gate_seconds(frames, last, settings, repeats=50))
    return ok("reused", f"the last action, {gate.max_reuse} times in a row at most, by {rule}{guards}: {cost} a step")


def _stages(series: Series) -> str:
    return ", ".join(f"{name} {_ms(seconds)}" for name, seconds in series.stages().items())


def _ms(seconds: np.ndarray) -> str:
    return f"{1e3 * float(np.median(seconds)):.3g} ms"

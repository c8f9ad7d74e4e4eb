"""OpenVLA-OFT and UniVLA give the hidden states, tokens and actions of their official code; broken, they do not."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seeded
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from flashvla_ros.control.blend import blended, lasting
from flashvla_ros.core.paths import share_path
from flashvla_ros.core.policy import Request
from flashvla_ros.core.provenance import counts
from flashvla_ros.core.settings import ModelSettings, PruningSettings
from flashvla_ros.core.types import ActionKind, ActionSpec, Draft, Inference, Observation
from flashvla_ros.vla import checkpoint
from flashvla_ros.vla.arch.oft.film import FilmedBlock, install, merged
from flashvla_ros.vla.arch.oft.policy import OFTPolicy
from flashvla_ros.vla.arch.table import architecture_of, load
from flashvla_ros.vla.arch.univla.decoder import AttentionPool
from flashvla_ros.vla.arch.univla.policy import UniVLAPolicy
from flashvla_ros.vla.arch.univla.sampling import Sampler, shares
from flashvla_ros.vla.parts import Tensors

DATA = Path(__file__).parent / "data"
DENSE = PruningSettings(method="none")
# Of the largest value. Sharp queries make the last bit of a product, which hangs on the processor, up to 2.2e-4 there;
# what breaks the architecture gives 5e-3 and more. In float64 FiLM's rows agree within 1e-6.
ROUNDING, BROKEN = 1e-3, 3e-3
NAMES = tuple(f"joint_{index}" for index in range(8))
STATE = dict(zip(NAMES, seeded.state_of_robot().tolist(), strict=True))
CASES = {  # name: images, L1 head, proprioception
    "plain1": (1, True, False),
    "proprio1": (1, True, True),
    "proprio2": (2, True, True),
    "plain3": (3, True, False),
    "discrete2": (2, False, True),
}


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return {
        name: value
        for kind in ("oft", "univla")
        for name, value in load_file(DATA / f"{kind}.expected.safetensors").items()
    }


FILM_FILE = "vision_backbone--1_checkpoint"


def film_tensors() -> dict[str, Tensor]:
    """Towers with FiLM and LoRA that was not merged, as peft names them."""
    shapes = json.loads((DATA / "film_shapes.json").read_text())
    return {name: seeded.draw(f"film {name}", tuple(shape), seeded.OFT_SEED) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def oft_folder(tmp_path_factory) -> Path:
    return seeded.write_oft(tmp_path_factory.mktemp("oft"), 1)


@pytest.fixture(scope="module")
def univla_folder(tmp_path_factory) -> Path:
    return seeded.write_univla(tmp_path_factory.mktemp("univla"))


def without(folder: Path, new: Path, *parts: str) -> Path:
    """Link a folder but for some parts."""
    shutil.copytree(folder, new, copy_function=os.link)
    for part in parts:
        (new / f"{part}.safetensors").unlink()
    return new


def oft(folder: Path, case: str, tmp_path: Path, **settings: Any) -> OFTPolicy:
    images, head, proprio = CASES[case]
    left_out = [name for name, there in ((seeded.HEAD_FILE, head), (seeded.PROJECTOR_FILE, proprio)) if not there]
    policy = load_float(
        without(folder, tmp_path / "folder", *left_out),
        architecture="openvla_oft",
        preset="libero",
        images=images,
        proprio=NAMES if proprio else (),
        **settings,
    )
    assert isinstance(policy, OFTPolicy)
    return policy


def load_float(folder: Path, **settings: Any) -> Any:
    return load(ModelSettings(**{"checkpoint": str(folder), "device": "cpu", "dtype": "float32", **settings}))


def see(
    policy: Any, previous: Inference | None = None, draft: Draft | None = None, stamp_s: float = 0.0, **pruning: Any
) -> Inference:
    images = {f"camera_{number}": seeded.image(number) for number in range(policy.cameras)}
    observation = Observation(images, seeded.INSTRUCTION, stamp_s=stamp_s, joint_positions=STATE)
    return policy.infer(Request(observation, PruningSettings(**pruning) if pruning else DENSE, previous, draft))


def hidden_rows(policy: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that takes what each prefill gives."""
    starts: list[Any] = []
    prefill = policy.engine.prefill

    def noted(*arguments: Any, **named: Any) -> Any:
        starts.append(prefill(*arguments, **named))
        return starts[-1]

    monkeypatch.setattr(policy.engine, "prefill", noted)
    return starts


def error(actual: Any, wanted: Tensor) -> float:
    values = torch.as_tensor(actual)
    assert values.shape == wanted.shape
    return float((values.double() - wanted.double()).abs().max() / wanted.double().abs().max())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("engine", ["eager", "static"])
def test_oft(case: str, engine: str, oft_folder, tmp_path, monkeypatch, expected) -> None:
    policy = oft(oft_folder, case, tmp_path, engine=engine)
    starts = hidden_rows(policy, monkeypatch)
    result = see(policy)
    assert error(starts[0].hidden, expected[f"{case}/hidden"]) < ROUNDING
    assert error(result.action, expected[f"{case}/action"]) < ROUNDING
    assert result.action.shape == (8, 7)
    assert bool(result.tokens.size) is not CASES[case][1]


def _layout(**changes: Any) -> Callable[[OFTPolicy], None]:
    def change(policy: OFTPolicy) -> None:
        policy.layout = dataclasses.replace(policy.layout, **changes)

    return change


def _one_row_later(policy: OFTPolicy) -> None:
    """The rows of the placeholders themselves."""
    prefill = policy.engine.prefill
    layout = policy.layout

    def later(visual: Tensor, query: Any, **named: Any) -> Any:
        wider = dataclasses.replace(layout, zeros=layout.zeros + 1, closing=())
        start = prefill(visual, dataclasses.replace(query, layout=wider), **named)
        return dataclasses.replace(start, hidden=start.hidden[1:])

    policy.engine.prefill = later  # type: ignore[method-assign]


def _other_bounds(policy: OFTPolicy) -> None:
    policy.bounds = dataclasses.replace(policy.bounds, low=policy.bounds.low - 0.02)


def _cut_away(policy: OFTPolicy) -> None:
    """The robot's state is not cut at its bounds."""
    names, bounds = policy._proprio  # type: ignore[misc]
    policy._proprio = names, dataclasses.replace(bounds, kind="mean_std")


def _cameras_exchanged(policy: OFTPolicy) -> None:
    prefill, count = policy.engine.prefill, policy.visual_tokens // 2

    def exchanged(visual: Tensor, query: Any, **named: Any) -> Any:
        return prefill(torch.cat([visual[:, count:], visual[:, :count]], dim=1), query, **named)

    policy.engine.prefill = exchanged  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "change",
    [_layout(full=False), _layout(closing=()), _one_row_later, _other_bounds, _cut_away, _cameras_exchanged],
    ids=["causal", "no end", "one row later", "bounds", "state not cut", "cameras exchanged"],
)
def test_a_broken_oft_is_noticed(change, oft_folder, tmp_path, expected) -> None:
    policy = oft(oft_folder, "proprio2", tmp_path, engine="eager")
    change(policy)
    assert error(see(policy).action, expected["proprio2/action"]) > BROKEN


def film(oft_folder: Path, tmp_path: Path) -> OFTPolicy:
    """The policy in float64, where it does not count that LoRA is merged here and added at run time there."""
    folder = without(oft_folder, tmp_path / "bare", seeded.PROJECTOR_FILE)
    policy = load_float(folder, preset="libero", images=1, engine="eager")
    assert isinstance(policy, OFTPolicy) and policy._head is not None
    policy.backend = dataclasses.replace(policy.backend, dtype=torch.float64)
    policy._head.double()
    path = tmp_path / f"{FILM_FILE}.pt"
    torch.save({name: value.double() for name, value in film_tensors().items()}, path)
    policy._language = install(policy.model.double(), path)
    return policy


def test_oft_with_film(oft_folder, tmp_path, monkeypatch, expected) -> None:
    folder = without(oft_folder, tmp_path / "film", seeded.PROJECTOR_FILE)
    torch.save(film_tensors(), folder / f"{FILM_FILE}.pt")
    policy = load_float(folder, preset="libero", images=1)
    assert error(see(policy).action, expected["film1/action"]) < 5e-3  # float32 and sharp queries
    policy = film(oft_folder, tmp_path)
    starts = hidden_rows(policy, monkeypatch)
    result = see(policy)
    assert error(starts[0].hidden, expected["film1/hidden"]) < 1e-6
    assert error(result.action, expected["film1/action"]) < 1e-6


def _filmed(modulated: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[pytest.MonkeyPatch], None]:
    """Blocks in which `modulated` makes rows of rows, γ and β."""

    def forward(self: FilmedBlock, hidden: Tensor) -> Tensor:
        scale, shift = self.scale(self._language)[:, None], self.shift(self._language)[:, None]
        return self.block.fed(modulated(self.block.attended(hidden), scale, shift))

    return lambda monkeypatch: monkeypatch.setattr(FilmedBlock, "forward", forward)


def _spared(rows: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Class token and registers are not modulated."""
    ahead = rows.shape[1] - 256
    return torch.cat([rows[:, :ahead], rows[:, ahead:] * (1 + scale) + shift], dim=1)


def _mean_of(rows: Callable[[OFTPolicy, list[int]], list[int]], zeros: int = 0) -> Callable[[pytest.MonkeyPatch], None]:
    """The mean over `rows`, and over as many rows of zeros as stand for the action."""

    def before_vision(self: OFTPolicy, prompt: list[int]) -> None:
        ids = torch.tensor(rows(self, prompt))
        table = self.model.language_model.model.embed_tokens
        self._language[0].copy_(table(ids).sum(dim=0) / (len(ids) + zeros))  # type: ignore[index]

    return lambda monkeypatch: monkeypatch.setattr(OFTPolicy, "_before_vision", before_vision)


def _all_of_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashvla_ros.vla.arch.oft.film._MOST_ALPHA", 32)


def _patches_without_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(tensors: Tensors, path: Path) -> Tensors:
        cut = {name: value * ("patch_embed.proj.lora_B" not in name) for name, value in tensors.items()}
        return merged(cut, path)

    monkeypatch.setattr("flashvla_ros.vla.arch.oft.film.merged", changed)


@pytest.mark.parametrize(
    "change",
    [
        _filmed(lambda rows, scale, shift: rows * scale + shift),
        _filmed(lambda rows, scale, shift: (rows + shift) * (1 + scale)),
        _filmed(_spared),
        _mean_of(lambda _policy, prompt: prompt),
        _mean_of(lambda policy, prompt: [*prompt[1:], *policy.layout.closing]),
        _mean_of(lambda policy, prompt: [*prompt, *policy.layout.closing], zeros=56),
        _all_of_alpha,
        _patches_without_lora,
    ],
    ids=["gamma", "shifted first", "no registers", "no end", "no BOS", "rows of the action", "alpha", "patches"],
)
def test_a_broken_film_is_noticed(change, oft_folder, tmp_path, monkeypatch, expected) -> None:
    change(monkeypatch)
    assert error(see(film(oft_folder, tmp_path)).action, expected["film1/action"]) > 1e-4


def test_discrete_oft_run_causally_is_noticed(oft_folder, tmp_path, expected) -> None:
    policy = oft(oft_folder, "discrete2", tmp_path, engine="eager")
    _layout(full=False)(policy)
    assert error(see(policy).action, expected["discrete2/action"]) > 0.1


@pytest.mark.parametrize("engine", ["eager", "static"])
def test_univla(engine: str, univla_folder, monkeypatch, expected) -> None:
    policy = load_float(univla_folder, engine=engine)
    assert isinstance(policy, UniVLAPolicy)
    starts = hidden_rows(policy, monkeypatch)
    previous = None
    for case in ("first", "history"):
        previous = result = see(policy, previous)
        assert result.tokens.tolist() == expected[f"{case}/tokens"].tolist()
        assert error(starts[-1].visual[:256], expected[f"{case}/visual"]) < ROUNDING
        assert error(result.normalized, expected[f"{case}/normalized_0"]) < ROUNDING
    drafted = see(policy, draft=Draft(expected["first/tokens"].numpy(), accept_bins=9, max_near=4))
    assert (drafted.draft_accepted, drafted.draft_near) == (4, 0)
    assert error(drafted.normalized, expected["first/normalized_0"]) < ROUNDING
    wrong = see(policy, draft=Draft(expected["first/tokens"].numpy() - 1, accept_bins=9, max_near=4))
    assert wrong.draft_accepted == 0
    assert error(wrong.normalized, expected["first/normalized_0"]) < ROUNDING


def test_univla_of_a_real_robot_is_told_of_its_state(univla_folder, tmp_path, expected) -> None:
    folder = without(univla_folder, tmp_path / "folder", "action_decoder")
    shapes = seeded.decoder_shapes(7)
    tensors = {name: seeded.draw(f"action_decoder {name}", shape, seeded.UNIVLA_SEED) for name, shape in shapes.items()}
    torch.save({f"module.{name}": value for name, value in tensors.items()}, folder / "action_decoder-200.pt")
    (folder / "dataset_statistics.json").write_text(json.dumps(seeded.statistics(7, 7)))
    policy = load_float(folder, proprio=NAMES[:7])
    assert error(see(policy).normalized, expected["first/normalized_7"]) < ROUNDING


def _last_patch_for_bos(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = policy._decoder

    def shifted(latents: Tensor, visual: Tensor, counted: Tensor | None, state: Tensor | None) -> Tensor:
        return decoder(latents, visual[1:], counted, state)

    policy._decoder = shifted


def _latents_one_later(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = policy._decoder
    policy._decoder = lambda latents, *others: decoder(latents.roll(-1, 0)[:3], *others)


def _seed_forgotten(_policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = AttentionPool.forward
    monkeypatch.setattr(
        AttentionPool, "forward", lambda self, rows, _start=None, counted=None: forward(self, rows, None, counted)
    )


def _latents_before_the_norm(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, rows = policy._decoder, []
    policy.model.language_model.model.norm.register_forward_pre_hook(
        lambda _norm, given: rows.append(given[0].flatten(0, -2)[-1])
    )
    policy._decoder = lambda _latents, *others: decoder(torch.stack(rows[-4:]), *others)


@pytest.mark.parametrize("change", [_last_patch_for_bos, _latents_one_later, _latents_before_the_norm, _seed_forgotten])
def test_a_broken_univla_is_noticed(change, univla_folder, monkeypatch, expected) -> None:
    policy = load_float(univla_folder, engine="eager")
    change(policy, monkeypatch)
    assert error(see(policy).normalized, expected["first/normalized_0"]) > BROKEN


def test_univla_without_its_history_is_noticed(univla_folder, expected) -> None:
    policy = load_float(univla_folder, engine="eager", preset="bridge")
    assert error(see(policy, see(policy)).normalized, expected["history/normalized_0"]) > BROKEN


def test_tokens_are_drawn_from_what_transformers_sampling_leaves() -> None:
    logits = torch.randn(200, generator=torch.Generator().manual_seed(1)) * 2.0
    wanted = logits[None].clone()
    wanted[:, 7] = -torch.inf
    for warper in (TemperatureLogitsWarper(0.75), TopKLogitsWarper(50), TopPLogitsWarper(0.9)):
        wanted = warper(torch.empty(1, 0), wanted)
    ids, share = shares(logits, without=7)
    assert 10 < int((share > 0).sum()) < 50
    torch.testing.assert_close(torch.zeros(200).index_add(0, ids, share), wanted.softmax(-1)[0])
    drawn = torch.bincount(torch.tensor([Sampler(seed, 7)(logits) for seed in range(4000)]), minlength=200) / 4000
    assert float((drawn - wanted.softmax(-1)[0]).abs().max()) < 0.03


def test_a_stamp_draws_the_same_latent_action_on_both_engines(univla_folder) -> None:
    drawn = {}
    for engine in ("eager", "static"):
        policy = load_float(univla_folder, engine=engine, sampling=True)
        with torch.no_grad():
            policy.model.language_model.lm_head.weight /= 40.0  # as likely as each other, nearly
        draft = Draft(see(load_float(univla_folder)).tokens)
        drawn[engine] = [see(policy, stamp_s=stamp, draft=draft) for stamp in (0.0, 0.1, 0.2, 0.1)]
        tokens = [result.tokens.tolist() for result in drawn[engine]]
        assert tokens[1] == tokens[3] and len(set(map(tuple, tokens))) == 3
        assert all(result.draft_tokens == 0 for result in drawn[engine])
    for one, other in zip(drawn["eager"], drawn["static"], strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert error(one.normalized, torch.from_numpy(other.normalized)) < ROUNDING


@pytest.mark.parametrize("engine", ["eager", "static"])
def test_keeping_all_tokens_changes_no_bit_and_fewer_change_the_action(
    engine, oft_folder, univla_folder, tmp_path
) -> None:
    for policy in (oft(oft_folder, "proprio2", tmp_path, engine=engine), load_float(univla_folder, engine=engine)):
        dense, count = see(policy), policy.visual_tokens
        assert np.array_equal(see(policy, method="ics", keep_ratio=1.0).normalized, dense.normalized)
        for layer in (0, 2):
            pruned = see(policy, method="ics", keep_ratio=0.5, layer=layer)
            assert pruned.kept is not None
            assert len(pruned.kept) == count // 2
            assert not np.array_equal(pruned.normalized, dense.normalized)


def test_the_files_tell_the_architecture(oft_folder, univla_folder, tmp_path) -> None:
    alone = without(oft_folder, tmp_path / "folder", seeded.HEAD_FILE, seeded.PROJECTOR_FILE)
    titles = [architecture_of(ModelSettings(checkpoint=str(f))).title for f in (oft_folder, univla_folder, alone)]
    assert titles == ["OpenVLA-OFT", "UniVLA", "OpenVLA"]


def test_the_blend_is_that_of_the_official_buffer(expected) -> None:
    chunks = np.random.RandomState(5).uniform(-1, 1, (20, 12, 7)).astype(np.float32).astype(np.float64)
    spec = ActionSpec(NAMES[:7], (ActionKind.DELTA,) * 7, 0.1)
    plans: Any = ()
    for step, (chunk, wanted) in enumerate(zip(chunks, expected["blend/actions"].numpy(), strict=True)):
        now_s = step * spec.dt_s
        plans = (*lasting(plans, now_s, spec.dt_s), (now_s, chunk))
        np.testing.assert_allclose(blended(plans, now_s, spec, 0.1)[0], wanted, rtol=1e-12)
        assert step == 0 or not np.allclose(blended(plans, now_s, spec, 0.2)[0], wanted, rtol=1e-6)


OPENED: list[str] = []
WATCHING: list[bool] = []


def test_a_fingerprint_is_of_all_that_loading_reads(
    oft_folder: Path, univla_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:  # no hook can be taken away again
        if WATCHING and event == "open" and isinstance(arguments[0], str | os.PathLike):
            OPENED.append(os.fspath(arguments[0]))

    sys.addaudithook(hook)
    monkeypatch.setattr(checkpoint, "is_pointer", lambda _: False)  # looks at the first bytes of every file
    folders = []
    for name, folder in (("oft", oft_folder), ("univla", univla_folder), ("demo", share_path("models", "demo"))):
        folders.append(Path(shutil.copytree(folder, tmp_path / name)))
        for decoy in ("generation_config.json", "added_tokens.json", "dataset_statistics.json", "vocab.json"):
            if not (folders[-1] / decoy).exists():
                source = json.loads((folder / "config.json").read_text())["norm_stats"]
                (folders[-1] / decoy).write_text(json.dumps(source if decoy.startswith("dataset") else {}))
    WATCHING.append(True)
    try:
        load_float(folders[0], preset="libero", proprio=NAMES)
        load_float(folders[1])
        load_float(folders[2])
    finally:
        WATCHING.clear()
    seen = {path.name for path in map(Path, OPENED) if path.parent in folders}
    assert {"config.json", "tokenizer_config.json", "added_tokens.json", "dataset_statistics.json"} <= seen
    assert [name for name in seen if not counts(name)] == []

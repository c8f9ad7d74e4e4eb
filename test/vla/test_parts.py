"""Folders whose parts do not fit: one line says what is wrong and what to do."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import tiny_config, write_checkpoint
from safetensors.torch import load_file, save_file

from flashvla_ros.core.errors import ActionError, CheckpointError
from flashvla_ros.core.settings import ModelSettings, PruningSettings, Settings
from flashvla_ros.doctor.checkpoint import check_checkpoint
from flashvla_ros.vla.arch.oft.film import merged
from flashvla_ros.vla.arch.oft.head import L1Head, ProprioProjector
from flashvla_ros.vla.arch.table import architecture_of, load
from flashvla_ros.vla.parts import fill, find_part, read_part
from flashvla_ros.vla.random_checkpoint import config_of_size, write_random_checkpoint

HEAD, PROJECTOR = "action_head--9_checkpoint", "proprio_projector--9_checkpoint"
STATE = {"q01": [0.0] * 3, "q99": [1.0] * 3}
ACTION = {"q01": [-0.01] * 4, "q99": [0.01] * 4, "mask": [True] * 4}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small OpenVLA-OFT folder with a head of four dimensions and a state of three values."""
    statistics = {"toy": {"action": ACTION, "proprio": STATE}}
    write_checkpoint(tmp_path, tiny_config(norm_stats=statistics))
    head = {f"model.{name}": value for name, value in L1Head(4 * 32, 16, 4).state_dict().items()}
    save_file(head, tmp_path / f"{HEAD}.safetensors")
    torch.save(
        {f"module.{k}": v for k, v in ProprioProjector(3, 32).state_dict().items()}, tmp_path / f"{PROJECTOR}.pt"
    )
    return tmp_path


def outline(folder: Path, **settings: Any) -> Any:
    given = {"checkpoint": str(folder), "preset": "libero", "images": 1, "proprio": ("x", "y", "z"), **settings}
    model = ModelSettings(**given)
    return architecture_of(model).outline(folder, model)


def refused(folder: Path, **settings: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        outline(folder, **settings)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_whole_folder_is_told(folder) -> None:
    found = outline(folder)
    assert (found.chunk_size, found.bounds.size, found.layout.extra, found.layout.zeros) == (8, 4, 1, 32)
    assert found.parts["proprioception"] == "x, y, z"
    assert outline(folder, chunk_size=3).layout.zeros == 12


def test_two_heads(folder) -> None:
    (folder / "action_head--10_checkpoint.pt").write_bytes(b"")
    assert "several files of its action_head--" in refused(folder)


def test_a_head_of_another_width(folder) -> None:
    save_file({f"model.{k}": v for k, v in L1Head(4 * 16, 16, 4).state_dict().items()}, folder / f"{HEAD}.safetensors")
    assert "no L1 head that reads hidden states of 32" in refused(folder)


@pytest.mark.parametrize("name", ["fc1.weight", "fc2.weight"])
def test_a_head_of_single_values(name, folder) -> None:
    head = {f"model.{key}": value for key, value in L1Head(4 * 32, 16, 4).state_dict().items()}
    save_file({**head, f"model.{name}": torch.tensor(1.0)}, folder / f"{HEAD}.safetensors")
    assert "no L1 head that reads hidden states of 32" in refused(folder)


def test_a_projector_of_single_values(folder) -> None:
    torch.save({"fc1.weight": torch.tensor(1.0)}, folder / f"{PROJECTOR}.pt")
    assert "reads 0 values of the robot's state" in refused(folder)


def test_a_head_of_other_dimensions_than_the_statistics(folder) -> None:
    save_file({f"model.{k}": v for k, v in L1Head(7 * 32, 16, 7).state_dict().items()}, folder / f"{HEAD}.safetensors")
    assert "makes actions of 7 dimensions, and the statistics of 'toy' have 4" in refused(folder)


def test_a_projector_without_its_parameter(folder) -> None:
    assert "reads 3 values of the robot's state, model.proprio names 0" in refused(folder, proprio=())


def test_what_no_file_says_is_named(folder) -> None:
    text = refused(folder, preset="none")
    assert "none of its files says what model.chunk_size and model.action_bounds is" in text
    assert "model.action_bounds" not in refused(folder, preset="none", action_bounds="quantiles")


def test_a_diffusion_head(folder) -> None:
    (folder / "noisy_action_projector--9_checkpoint.pt").write_bytes(b"")
    assert "a diffusion head" in refused(folder)


def test_openvla_does_not_run_the_parts_of_another(folder) -> None:
    assert "set model.architecture to openvla_oft" in refused(folder, architecture="openvla")


def test_a_tokenizer_without_end_is_not_read_whole(folder) -> None:
    for file in folder.glob("*--*"):
        file.unlink()
    with (folder / "tokenizer.json").open("wb") as stream:
        stream.truncate(1 << 40)  # takes no space
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: it has more than 100 MB"):
        architecture_of(ModelSettings(checkpoint=str(folder)))


class Trap:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> Any:
        return print, ("the pickle ran",)


def test_a_pickle_that_runs_code_does_not_run_it(folder, capsys) -> None:
    (folder / f"{PROJECTOR}.pt").unlink()
    torch.save({"fc1.weight": Trap()}, folder / f"{PROJECTOR}.pt")
    assert "would run code when read" in refused(folder)
    (folder / f"{PROJECTOR}.pt").write_bytes(pickle.dumps(Trap()))
    assert f"{PROJECTOR}.pt" in refused(folder)
    assert "the pickle ran" not in capsys.readouterr().out


def test_something_else_than_tensors(tmp_path) -> None:
    torch.save({"step": 3}, tmp_path / "part.pt")
    with pytest.raises(CheckpointError, match="something else than a module's tensors"):
        read_part(tmp_path / "part.pt")


@pytest.mark.parametrize("kind", ["cut", "changed", "text", "empty"])
def test_a_damaged_part_is_named(kind, tmp_path) -> None:
    path = tmp_path / "part.pt"
    torch.save(ProprioProjector(3, 32).state_dict(), path)
    whole = path.read_bytes()
    random, refusals = np.random.default_rng(0), []
    for _ in range(40):
        content = bytearray(whole)
        if kind == "cut":
            del content[int(random.integers(len(whole))) :]
        elif kind == "changed":
            start = int(random.integers(len(whole) - 40))
            content[start : start + 40] = random.bytes(40)
        else:
            content = bytearray(random.bytes(200) if kind == "text" else b"")
        path.write_bytes(content)
        try:
            read_part(path)  # a changed value is a value
        except CheckpointError as error:
            refusals.append(str(error))
    assert refusals
    assert all(str(path) in text and "\n" not in text for text in refusals)


def test_every_name_and_shape_is_checked(tmp_path) -> None:
    tensors = ProprioProjector(3, 32).state_dict()
    tensors["fc3.weight"] = tensors.pop("fc2.bias")
    tensors["fc1.bias"] = tensors["fc1.bias"][:5]
    with pytest.raises(CheckpointError) as caught:
        fill(ProprioProjector(3, 32), tensors, tmp_path / "part.pt", torch.device("cpu"), torch.float32)
    for what in ("fc2.bias is missing", "fc3.weight is unexpected", r"fc1.bias has shape [5] instead of [32]"):
        assert what in str(caught.value)


def test_values_that_are_not_finite(tmp_path) -> None:
    tensors = ProprioProjector(3, 32).state_dict()
    tensors["fc1.bias"] = tensors["fc1.bias"] / 0.0
    with pytest.raises(CheckpointError, match=r"not finite in torch\.float32, in fc1\.bias"):
        fill(ProprioProjector(3, 32), tensors, tmp_path / "part.pt", torch.device("cpu"), torch.float32)


def test_safetensors_go_before_a_pickle_of_the_same_name(folder) -> None:
    save_file(ProprioProjector(3, 32).state_dict(), folder / f"{PROJECTOR}.safetensors")
    assert find_part(folder, "proprio_projector--") == folder / f"{PROJECTOR}.safetensors"


def test_lora_is_merged_by_its_rank(tmp_path) -> None:
    base, first, second = torch.zeros(2, 3, 1, 1), torch.ones(32, 3, 1, 1), torch.ones(2, 32, 1, 1)
    pair = {"p.lora_A.default.weight": first, "p.lora_B.default.weight": second}
    found = merged({"p.base_layer.weight": base, "p.base_layer.bias": torch.ones(2), **pair}, tmp_path)
    assert found["p.weight"].tolist() == torch.full((2, 3, 1, 1), 16.0).tolist()
    assert set(found) == {"p.weight", "p.bias"}


@pytest.mark.parametrize(
    ("name", "shape"),
    [("lora_A.default.weight", (2, 5)), ("lora_B.default.weight", (3, 2)), ("lora_A.default.weight", ()),
     ("lora_A.default.weight", (0, 3)), ("base_layer.weight", ())],
)  # fmt: skip
def test_lora_of_another_shape(name, shape, tmp_path) -> None:
    shapes = {"base_layer.weight": (2, 3), "lora_A.default.weight": (4, 3), "lora_B.default.weight": (2, 4)}
    tensors = {f"p.{key}": torch.ones(size) for key, size in {**shapes, name: shape}.items()}
    with pytest.raises(CheckpointError, match=r"LoRA matrices of p do not fit its weight: copy the file again"):
        merged(tensors, tmp_path / "film.pt")


@pytest.mark.parametrize("left_out", ["base_layer.weight", "lora_A.default.weight", "lora_B.default.weight"])
def test_lora_without_its_pair(left_out, tmp_path) -> None:
    names = ("base_layer.weight", "lora_A.default.weight", "lora_B.default.weight")
    tensors = {f"p.{name}": torch.ones(2, 2) for name in names if name != left_out}
    with pytest.raises(CheckpointError, match="copy the file again"):
        merged(tensors, tmp_path / "film.pt")


def test_univla_needs_latent_tokens_and_a_decoder_of_a_known_kind(folder) -> None:
    for file in folder.glob("*--*"):
        file.unlink()
    save_file({"head.weight": torch.ones(2, 2)}, folder / "action_decoder.safetensors")
    assert "its tokenizer has no latent actions" in refused(folder)
    (folder / "action_decoder.safetensors").unlink()
    assert "has no action_decoder" in refused(folder, architecture="univla")


def test_a_decoder_of_unknown_or_missing_tensors(tmp_path) -> None:
    write_random_checkpoint(tmp_path, config_of_size("tiny"), architecture="univla")
    path = tmp_path / "action_decoder.safetensors"
    tensors = load_file(path)
    save_file({f"r2r_{name}": value for name, value in tensors.items()}, path)
    assert "is no action decoder for an arm" in refused(tmp_path, unnorm_key="random_7d")
    tensors["visual_pool.gate.weight"] = tensors.pop("visual_pool.attn.q.weight")
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        load(ModelSettings(checkpoint=str(tmp_path), unnorm_key="random_7d", device="cpu"))
    assert "visual_pool.attn.q.weight is missing; visual_pool.gate.weight is unexpected" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("proj.0.weight", ()),
        ("visual_pool.latents", (1, 0)),
        ("visual_pool.latents", (1, 128)),
        ("visual_pool.mlp.1.weight", (64,)),
    ],
)
def test_a_decoder_whose_parts_do_not_fit_each_other(name, shape, tmp_path) -> None:
    write_random_checkpoint(tmp_path, config_of_size("tiny"), architecture="univla")
    path = tmp_path / "action_decoder.safetensors"
    save_file({**load_file(path), name: torch.zeros(shape)}, path)
    assert "is no action decoder for an arm" in refused(tmp_path, unnorm_key="random_7d")


def test_the_other_univla_is_named(folder) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "Emu3"}))
    assert "UniVLA of arXiv 2506.19850" in refused(folder, architecture="openvla")


@pytest.mark.parametrize(("architecture", "chunk", "cameras"), [("openvla_oft", 8, 2), ("univla", 12, 1)])
def test_a_random_checkpoint_of_each_architecture_warms_up_unless_its_weights_are_zero(
    architecture, chunk, cameras, tmp_path
) -> None:
    write_random_checkpoint(tmp_path, config_of_size("tiny"), architecture=architecture)
    model = ModelSettings(checkpoint=str(tmp_path), unnorm_key="random_7d", device="cpu", engine="eager")
    policy = load(model)
    policy.warm_up(PruningSettings(keep_ratio=0.5))
    assert (policy.chunk_size, policy.action_size, policy.cameras) == (chunk, 7, cameras)
    assert architecture_of(model).outline(tmp_path, model).chunk_size == chunk
    before = [value.clone() for value in policy.model.language_model.parameters()]
    part = policy._head if architecture == "openvla_oft" else policy._decoder
    for broken in (policy.model.language_model, part):  # weights of zero say nothing
        for value in broken.parameters():
            value.zero_()
        with pytest.raises(ActionError, match="so the model says nothing"):
            policy.warm_up(PruningSettings(keep_ratio=0.5))
        for value, good in zip(policy.model.language_model.parameters(), before, strict=True):
            value.copy_(good)


def test_the_doctor_and_the_policy_take_prompts_of_one_length(tmp_path) -> None:
    write_random_checkpoint(tmp_path, config_of_size("tiny"), architecture="univla")
    settings = Settings().with_values(
        {"model.checkpoint": str(tmp_path), "model.unnorm_key": "random_7d", "model.device": "cpu"}
    )
    found = {one.name: one.text for one in check_checkpoint(tmp_path, settings)}
    assert found["tokenizer"].endswith(f"at most {load(settings.model).prompts.max_tokens}")

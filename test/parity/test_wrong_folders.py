"""Folders that are not a usable checkpoint: one line says what was found and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from official import DATA, DATA_SETS, load
from safetensors.torch import load_file, save_file

from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.errors import ActionError, CheckpointError
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionKind, ActionSpec
from flashvla_ros.doctor.checkpoint import check_checkpoint
from flashvla_ros.doctor.finding import Level

KEY = DATA_SETS["fused"][0]


def _change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    data = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in data.items() if value is not None}))


def _text_only(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096}))


def _chat_model(folder: Path) -> None:
    _change_config(folder, llm_backbone_id="vicuna-v15-7b")


def _adapter_alone(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"lora_A": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")


def _adapter_beside_a_config(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    save_file({"lora_A": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")


def _pickled(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(b"\x80\x02.")


def _truncated(folder: Path) -> None:
    file = folder / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def _shard_missing(folder: Path) -> None:
    (folder / "model-00003-of-00003.safetensors").unlink()


def _index_missing(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()


def _quantised(folder: Path) -> None:
    file = folder / "model-00003-of-00003.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name].to(torch.int8)}, file)


def _tokenizer_missing(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _smaller_tower(folder: Path) -> None:
    towers = json.loads((folder / "config.json").read_text())["vision_config"]
    _change_config(folder, vision_config=[towers[0], {**towers[1], "hidden_size": 24, "num_attention_heads": 2}])


def _published_tower(folder: Path) -> None:
    """config.json of a checkpoint with the published towers over weights of small ones."""
    _change_config(folder, vision_config=None)
    (folder / "preprocessor_config.json").unlink()


def _one_tower_too_many(folder: Path) -> None:
    towers = json.loads((folder / "config.json").read_text())["vision_config"]
    _change_config(folder, vision_config=towers[1:], use_fused_vision_backbone=False)
    (folder / "preprocessor_config.json").unlink()


def _images_of_another_size(folder: Path) -> None:
    file = folder / "preprocessor_config.json"
    file.write_text(file.read_text().replace("56", "224"))


def _no_percentiles(folder: Path) -> None:
    _change_config(folder, norm_stats={KEY: {"action": {"mean": [0.0] * 7, "std": [1.0] * 7}}})


def _no_statistics(folder: Path) -> None:
    _change_config(folder, norm_stats=None)


def _flat_statistics(folder: Path) -> None:
    """The form in which OpenVLA's data loader keeps them in its cache."""
    action = json.loads((folder / "config.json").read_text())["norm_stats"][KEY]["action"]
    statistics = {"action": action, "proprio": action, "num_transitions": 9, "num_trajectories": 1}
    (folder / "dataset_statistics.json").write_text(json.dumps(statistics))


def _empty_statistics(folder: Path) -> None:
    (folder / "dataset_statistics.json").write_text("{}")


def _pointers(folder: Path) -> None:
    for name in ("tokenizer.json", "model-00002-of-00003.safetensors"):
        (folder / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 499723\n")


def _two_models(folder: Path) -> None:
    shutil.copy(folder / "model-00003-of-00003.safetensors", folder / "model.safetensors")


def _adapter_beside_weights(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"lora_A": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")


def _download_cache(folder: Path) -> None:
    inner = folder / "snapshots" / "31f090d"
    inner.mkdir(parents=True)
    for file in [file for file in folder.iterdir() if file.is_file()]:
        file.rename(inner / file.name)


def _training_run(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-000100-epoch-01-loss=0.1.pt").write_bytes(b"PK")
    (folder / "config.json").write_text('{"vla": {}}')


def _another_tower(folder: Path) -> None:
    _change_config(folder, vision_backbone_id="dinoclip-vit-l-336px", vision_config=None)


def _other_resizing_in_force(folder: Path) -> None:
    file = folder / "preprocessor_config.json"
    data = json.loads(file.read_text())
    assert data["tvf_resize_params"]
    file.write_text(json.dumps({**data, "image_resize_strategy": "letterbox"}))


def _other_normalisation_in_force(folder: Path) -> None:
    file = folder / "preprocessor_config.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps({**data, "means": [[0.5, 0.5, 0.5]] * 2}))


def _index_of_numbers(folder: Path) -> None:
    file = folder / "model.safetensors.index.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps({**data, "weight_map": dict.fromkeys(data["weight_map"], 3)}))


def _nested(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 200_000)


def _deep(folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    _change_config(folder, text_config={**text, "num_hidden_layers": 10**9})


def _no_file(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")


def _no_sentencepieces(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"not a model")


def _no_first_token(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"add_bos_token": false}')


WRONG: list[tuple[Callable[[Path], None], str, str]] = [  # what is done, what was found, what to do
    (_text_only, r"model_type is 'llama', not 'openvla'", "give the folder of an OpenVLA checkpoint"),
    (_chat_model, r"OpenVLA v0\.1", r"give a checkpoint of OpenVLA-7B"),
    (_adapter_alone, "a LoRA adapter alone", "merge it into its base model"),
    (_adapter_beside_a_config, "a LoRA adapter alone", "merge it into its base model"),
    (_pickled, r"pickled weights \(pytorch_model-00001-of-00002\.bin\)", "save them as safetensors"),
    (_truncated, r"model-00002-of-00003\.safetensors .*cut short at \d+ bytes", "copy it again"),
    (_shard_missing, r"lacks model-00003-of-00003\.safetensors", "copy"),
    (_index_missing, r"no model\.safetensors\.index\.json", "copy that file too"),
    (_quantised, "I8, so the weights are quantised", "give a checkpoint saved in bfloat16"),
    (_tokenizer_missing, "has no tokenizer", r"copy tokenizer\.json or tokenizer\.model"),
    (_smaller_tower, r"fused_featurizer\.\S+ has shape .* asks for", r"use the config\.json of these weights"),
    (_published_tower, r"missing tensors: vision_backbone\.", r"use the config\.json of these weights"),
    (_one_tower_too_many, r"unexpected tensors: projector.fc3.bias", r"use the config\.json of these weights"),
    (_images_of_another_size, r"input_sizes must be \[3, 56, 56\]", r"use the preprocessor_config\.json"),
    (_no_percentiles, "lacks q01 and q99", "copy"),
    (_no_statistics, r"norm_stats is missing.*no dataset_statistics\.json", "copy"),
    (_flat_statistics, "one data set without its name", r"write \{\"NAME\": …\} around them"),
    (_empty_statistics, r"dataset_statistics\.json names no data set", "copy the one"),
    (_pointers, r"model-00002-of-00003\.safetensors, tokenizer\.json are pointers of Git LFS", "run git lfs pull"),
    (_two_models, r"two models, model\.safetensors and the shards", "delete the older"),
    (_adapter_beside_weights, r"the weights of a model and a LoRA adapter", "merge the adapter .* or move its files"),
    (_download_cache, "is a download cache", r"give .*snapshots/31f090d"),
    (_training_run, r"a run of OpenVLA's train\.py", r"convert it with its convert_openvla_weights_to_hf\.py"),
    (_another_tower, "'dinoclip-vit-l-336px' has a tower of CLIP", "give a checkpoint of dinosiglip"),
    (_other_resizing_in_force, "tvf_do_letterbox does not fit", "set image_resize_strategy"),
    (_other_normalisation_in_force, r"tvf_normalize_params\.mean does not fit", "set image_resize_strategy, means"),
    (_index_of_numbers, "weight_map must name files of this folder, got 3", "copy it again"),
    (_nested, r"config\.json is not JSON", "nested too deeply"),
    (_deep, "num_hidden_layers of the decoder is 1000000000", "no model has over 1000"),
    (_no_file, r"cannot read .*config\.json", "not a regular file"),
    (_no_sentencepieces, "tokenizer files .* cannot be read", "copy them again .*not a SentencePiece model"),
    (_no_first_token, "add_bos_token is false", "set it to true"),
]


@pytest.fixture(params=WRONG, ids=lambda row: row[0].__name__.strip("_"))
def wrong(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A spoilt copy of the fused checkpoint, and the pattern of the message."""
    spoil, found, remedy = request.param
    folder = Path(shutil.copytree(DATA / "fused", tmp_path / "checkpoint"))
    spoil(folder)
    return folder, f"{found}.*({remedy})"


def test_loading_refuses_in_one_line(wrong: tuple[Path, str]) -> None:
    folder, pattern = wrong
    with pytest.raises(CheckpointError, match=pattern) as caught:
        load(folder, KEY)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value) or KEY in str(caught.value)


def test_the_doctor_says_the_same(wrong: tuple[Path, str]) -> None:
    folder, _ = wrong
    settings = Settings().with_values({"model.unnorm_key": KEY, "action.names": list("abcdefg")} | _kinds(7))
    failures = [f.text for f in check_checkpoint(folder, settings) if f.level is Level.FAILURE]
    with pytest.raises(CheckpointError) as caught:
        load(folder, KEY)
    assert str(caught.value) in failures


def _kinds(size: int) -> dict[str, Any]:
    return {"action.kinds": ["delta"] * (size - 1) + ["gripper"]}


def test_an_action_of_another_size_than_the_command_is_refused_with_both() -> None:
    policy = load(DATA / "fused", KEY)
    spec = ActionSpec(("x", "y", "z", "gripper"), (ActionKind.DELTA,) * 3 + (ActionKind.GRIPPER,), 0.1)
    with pytest.raises(ActionError, match=r"7 dimensions but action\.names declares 4 .*set action\.names"):
        Stepper(policy, spec)


def test_one_of_several_data_sets_must_be_chosen() -> None:
    with pytest.raises(CheckpointError, match=r"set model\.unnorm_key to one of bridge_orig, four_dof"):
        load(DATA / "fused", "")
    with pytest.raises(CheckpointError, match=r"'bridge' is not among .*: bridge_orig"):
        load(DATA / "fused", "bridge")


def test_the_only_data_set_needs_no_choice() -> None:
    assert load(DATA / "single", "").action_size == 7

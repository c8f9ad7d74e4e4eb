from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import NORM_STATS, random_model, tiny_config, write_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from flashvla_ros.core.errors import CheckpointError
from flashvla_ros.vla.checkpoint import load_config, load_model
from flashvla_ros.vla.keys import EMBEDDING, HEAD
from flashvla_ros.vla.model import PrismaticVLM
from flashvla_ros.vla.statistics import Bounds
from flashvla_ros.vla.tokenizer import build_tokenizer
from training.forcing import action_logits
from training.saving import save_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def folder(original, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(original, tmp_path / "copy"))


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PrismaticVLM:
    return load_model(folder, load_config(folder), CPU, dtype)


def answer(model: PrismaticVLM, pixels: Tensor, *ids: Tensor) -> Tensor:
    return action_logits(model, model.visual_tokens(pixels), *ids)


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("fused", [True, False])
def test_round_trip_is_bit_exact(fused, tmp_path):
    config = tiny_config(fused=fused)
    loaded = load(write_checkpoint(tmp_path, config, seed=5))
    source = random_model(config, seed=5)
    assert loaded.state_dict().keys() == source.state_dict().keys()
    for name, tensor in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    pixels = torch.randn(1, 6 if fused else 3, 56, 56)
    arguments = pixels, torch.tensor([[1, 300, 301]]), torch.tensor([[900, 901]])
    assert torch.equal(answer(loaded, *arguments), answer(source, *arguments))


def test_files_have_the_official_names_and_shapes(original):
    tensors = load_file(original / "model.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes["vision_backbone.featurizer.pos_embed"] == (1, 16, 32)
    assert shapes["vision_backbone.featurizer.cls_token"] == (1, 1, 32)
    assert shapes["vision_backbone.featurizer.reg_token"] == (1, 4, 32)
    assert shapes["vision_backbone.featurizer.blocks.1.attn.qkv.weight"] == (96, 32)
    assert shapes["vision_backbone.featurizer.blocks.0.ls1.scale_factor"] == (32,)
    assert shapes["vision_backbone.fused_featurizer.patch_embed.proj.weight"] == (32, 3, 14, 14)
    assert shapes["projector.fc1.weight"] == (256, 64)
    assert shapes["language_model.model.layers.3.self_attn.o_proj.weight"] == (32, 32)
    assert shapes["language_model.lm_head.weight"] == (1088, 32)


def test_shards_load_like_one_file(original, tmp_path):
    write_checkpoint(tmp_path, max_shard_bytes=50_000)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 3
    assert not (tmp_path / "model.safetensors").exists()
    files = []
    config = load_config(tmp_path)
    sharded = load_model(tmp_path, config, CPU, torch.float32, progress=lambda *step: files.append(step))
    for name, tensor in load(original).state_dict().items():
        assert torch.equal(sharded.state_dict()[name], tensor)
    assert [number for _, number, _ in files] == list(range(1, files[0][2] + 1))


def test_saving_again_leaves_no_stale_shard(tmp_path):
    write_checkpoint(tmp_path, max_shard_bytes=50_000)
    write_checkpoint(tmp_path, seed=1)
    assert [file.name for file in tmp_path.glob("model*")] == ["model.safetensors"]
    load(tmp_path)


def tied(folder: Path) -> None:
    """Make the output projection the table of embeddings, as save_pretrained writes it: once."""
    data = json.loads((folder / "config.json").read_text())
    data["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(data))
    rewrite(folder, lambda tensors: tensors.pop(HEAD))


def test_a_tied_output_projection_is_the_table_of_embeddings(folder, tmp_path):
    untied = load(folder)
    untied.language_model.lm_head.weight = untied.language_model.model.embed_tokens.weight
    tied(folder)
    model = load(folder)
    arguments = torch.randn(1, 6, 56, 56), torch.tensor([[1, 300, 301]]), torch.tensor([[900, 901]])
    assert torch.equal(answer(model, *arguments), answer(untied, *arguments))
    save_checkpoint(tmp_path / "again", model, build_tokenizer([], 1024))
    assert HEAD not in load_file(tmp_path / "again" / "model.safetensors")
    assert torch.equal(answer(load(tmp_path / "again"), *arguments), answer(untied, *arguments))


def test_a_tied_output_projection_may_be_there_twice_but_not_in_two_forms(folder):
    tied(folder)
    rewrite(folder, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}))
    load(folder)
    rewrite(folder, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING] + 1.0}))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is not the table of embeddings.*use the config\.json"):
        load(folder)


def test_one_file_goes_before_an_index_whose_shards_are_gone(folder):
    """Saving over shards leaves their index; the official code reads the file."""
    index = {"metadata": {}, "weight_map": {"x": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    load(folder)


@pytest.mark.parametrize(
    ("value", "dtype"), [(float("nan"), torch.float32), (float("-inf"), torch.float32), (1e30, torch.float16)]
)
def test_weights_that_are_not_finite_are_named(value, dtype, folder):
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    rewrite(folder, lambda tensors: tensors[name][0, :1].fill_(value))
    with pytest.raises(CheckpointError, match=rf"not finite in {str(dtype)[6:]}, in {name}: copy the file again"):
        load(folder, dtype)


def test_weights_take_the_type_asked_for(original):
    model = load(original, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    cosines, _ = model.rotary(torch.zeros(1), torch.tensor([[1000]]))  # whose angles bfloat16 could not hold
    assert cosines[0, 0, 0] == torch.cos(torch.tensor(1000.0))


def test_unused_parts_of_official_towers_are_ignored(folder):
    block = "vision_backbone.featurizer.blocks.2.mlp.fc1.weight"
    pool = "vision_backbone.fused_featurizer.attn_pool.latent"
    inverse = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder, lambda tensors: tensors.update(dict.fromkeys((pool,), torch.ones(1, 1, 32))))
    rewrite(folder, lambda tensors: tensors.update({block: torch.ones(64, 32), inverse: torch.ones(8)}))
    load(folder)


def test_statistics_of_fine_tuning_replace_those_of_the_config(folder):
    other = {"mine": NORM_STATS["toy"]}
    (folder / "dataset_statistics.json").write_text(json.dumps(other))
    assert load_config(folder).norm_stats == other


@pytest.mark.parametrize("statistics", [{"action": 5}, {"action": "q01"}, {"action": None}])
def test_statistics_that_are_none_are_told_when_the_data_set_is_chosen(statistics, folder):
    (folder / "dataset_statistics.json").write_text(json.dumps(statistics))
    config = load_config(folder)
    with pytest.raises(CheckpointError, match="norm_stats of 'action' lacks 'action'"):
        Bounds.from_statistics(config.norm_stats, "action")


def test_missing_and_unexpected_tensors_are_named(folder):
    def change(tensors):
        tensors["action_head.weight"] = tensors.pop("projector.fc2.bias")

    rewrite(folder, change)
    with pytest.raises(
        CheckpointError, match=r"missing tensors: projector\.fc2\.bias.*unexpected.*action_head\.weight"
    ):
        load(folder)


def test_long_lists_of_tensors_stay_short(folder):
    def change(tensors):
        for name in list(tensors):
            if ".fused_featurizer." in name:
                del tensors[name]

    rewrite(folder, change)
    with pytest.raises(CheckpointError, match="missing tensors") as caught:
        load(folder)
    assert len(str(caught.value)) < 600


def test_tensor_of_another_shape_is_named(folder):
    rewrite(folder, lambda tensors: tensors.update({"projector.fc1.weight": torch.ones(8, 64)}))
    with pytest.raises(CheckpointError, match=r"projector\.fc1\.weight has shape \[8, 64\].*asks for \[256, 64\]"):
        load(folder)


def test_truncated_weights_are_named(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read; it is damaged or cut short"):
        load(folder)


def test_missing_folder(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_config(tmp_path / "nowhere")


def test_empty_folder(tmp_path):
    with pytest.raises(CheckpointError, match="is empty"):
        load_config(tmp_path)


@pytest.mark.parametrize("method", ["iterdir", "open"])
def test_a_folder_or_file_that_may_not_be_read_is_named(method, folder, monkeypatch):
    """The superuser, who runs the tests in a container, may read everything."""

    def refuse(path: Path, *_mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(CheckpointError, match=rf"cannot read .*{folder.name}.*: Permission denied"):
        load_config(folder)


def test_adapter_alone(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="LoRA adapter alone: merge it"):
        load_config(tmp_path)


def test_missing_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        load_config(folder)


def test_damaged_config(folder):
    (folder / "config.json").write_text('{"model_type": ')
    with pytest.raises(CheckpointError, match=r"config\.json is not JSON"):
        load_config(folder)


def test_config_without_statistics(folder):
    data = json.loads((folder / "config.json").read_text())
    del data["norm_stats"]
    (folder / "config.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="norm_stats is missing"):
        load_config(folder)


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickled weights.*save them as safetensors"):
        load(folder)


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        load(folder)


def test_missing_shard_is_named(tmp_path):
    write_checkpoint(tmp_path, max_shard_bytes=50_000)
    shard = sorted(tmp_path.glob("model-*"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"lacks {shard.name}"):
        load(tmp_path)

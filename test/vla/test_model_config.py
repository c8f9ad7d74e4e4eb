from __future__ import annotations

import json

import pytest
from checkpoints import tiny_config

from flashvla_ros.core.errors import CheckpointError
from flashvla_ros.vla.checkpoint import build_empty
from flashvla_ros.vla.config import OpenVLAConfig
from flashvla_ros.vla.shapes import KNOWN_BACKBONES

OPENVLA_7B = {
    "model_type": "openvla",
    "vision_backbone_id": "dinosiglip-vit-so-224px",
    "llm_backbone_id": "llama2-7b-pure",
    "arch_specifier": "no-align+fused-gelu-mlp",
    "image_resize_strategy": "resize-naive",
    "image_sizes": [224, 224],
    "pad_to_multiple_of": 64,
    "pad_token_id": 32000,
    "n_action_bins": 256,
    "norm_stats": {"bridge": {"action": {"q01": [0.0], "q99": [1.0]}}},
    "text_config": {"model_type": "llama", "pad_token_id": 32000, "torch_dtype": "bfloat16", "vocab_size": 32064},
    "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
    "timm_override_act_layers": [None, None],
    "use_fused_vision_backbone": True,
}


def test_published_config_names_a_backbone_whose_sizes_are_known():
    config = OpenVLAConfig.from_dict(OPENVLA_7B)
    assert config.fused
    assert config.visual_tokens == 256
    assert config.vision_size == 1024 + 1152
    assert config.action_vocab_size == 32000
    llama = config.llama()
    assert (llama.hidden_size, llama.intermediate_size, llama.num_hidden_layers) == (4096, 11008, 32)
    assert llama.rms_norm_eps == 1e-6


def test_what_transformers_leaves_out_of_config_json_is_its_default():
    config = OpenVLAConfig.from_dict({**OPENVLA_7B, "text_config": {"model_type": "llama"}})
    assert config.llama().vocab_size == 32000
    assert config.action_vocab_size == 32000 - 64


def test_the_base_of_the_rotary_embedding_is_read_wherever_a_release_wrote_it():
    for text in ({"rope_theta": 500.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}):
        assert OpenVLAConfig.from_dict({**OPENVLA_7B, "text_config": text}).llama().rope_theta == 500.0


def test_written_config_has_what_the_official_class_reads():
    written = OpenVLAConfig.from_dict(OPENVLA_7B).to_dict()
    for name, value in OPENVLA_7B.items():
        if name != "text_config":
            assert written[name] == value
    assert written["text_config"]["vocab_size"] == 32064


@pytest.mark.parametrize("config", [tiny_config(), tiny_config(fused=False), OpenVLAConfig.from_dict(OPENVLA_7B)])
def test_config_survives_json(config):
    again = OpenVLAConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again.towers == config.towers
    assert again.to_dict() == config.to_dict()


def test_384_pixels_make_the_grid_that_fits():
    assert KNOWN_BACKBONES["dinosiglip-vit-so-384px"][0].tokens == 27 * 27


@pytest.mark.parametrize("field", ["model_type", "vision_backbone_id", "text_config"])
def test_missing_field_is_named(field):
    data = {name: value for name, value in OPENVLA_7B.items() if name != field}
    with pytest.raises(CheckpointError, match=f"{field} is missing"):
        OpenVLAConfig.from_dict(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "'llama', not 'openvla'"),
        ({"text_config": {"vocab_size": "many"}}, r"text_config\.vocab_size must be of type int"),
        ({"text_config": {"vocab_size": 200}}, "leaves no room for 256 action bins"),
        ({"text_config": {"vocab_size": 32064, "model_type": "mistral"}}, "only Llama"),
        ({"text_config": {"vocab_size": 32064, "hidden_size": "wide"}}, "hidden_size of the decoder must be"),
        ({"text_config": {"rope_scaling": "linear"}}, "rope_scaling of the decoder must be an object"),
        ({"text_config": {"rope_scaling": {"type": "linear"}}}, "must be the default one, got 'linear'"),
        ({"text_config": {"rope_parameters": {"rope_type": "llama3"}}}, "must be the default one, got 'llama3'"),
        ({"text_config": {"num_attention_heads": 6, "hidden_size": 36, "num_key_value_heads": 4}}, "not a multiple of"),
        ({"text_config": {"head_dim": 7}}, "must be even to be turned, got 7"),
        ({"text_config": {"mlp_bias": "no"}}, "mlp_bias of the decoder must be true or false"),
        ({"text_config": {"rms_norm_eps": 0}}, "rms_norm_eps of the decoder must be a number above 0"),
        ({"vision_backbone_id": "clip-vit-l"}, "'clip-vit-l' has a tower of CLIP"),
        ({"vision_backbone_id": "siglip-vit-b16"}, "'siglip-vit-b16' is not one of"),
        ({"use_fused_vision_backbone": False}, "there are 2 towers"),
        ({"image_resize_strategy": "squeeze"}, "image_resize_strategy must be one of"),
        ({"n_action_bins": "256"}, "n_action_bins must be of type int"),
        ({"vision_config": {}}, "must be a list of objects"),
        ({"vision_config": []}, "one or two towers, got 0"),
        ({"vision_config": [{"model_type": "siglip_vision_model"}]}, r"vision_config\[0\] lacks image_size"),
    ],
)
def test_wrong_value_is_named(change, message):
    with pytest.raises(CheckpointError, match=message):
        OpenVLAConfig.from_dict({**OPENVLA_7B, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "vit"}, "model_type must be"),
        ({"hidden_size": 33}, "not a multiple of its 2 attention heads"),
        ({"hidden_act": "gellu"}, "hidden_act of the dinov2.* must be one of silu, gelu, .*, got 'gellu'"),
        ({"hidden_size": 0}, "hidden_size of the dinov2"),
        ({"patch_size": 57}, "below its patch_size"),
        ({"image_size": 70}, "both vision towers must see the same"),
        ({"depth": 3}, "unknown fields depth"),
    ],
)
def test_wrong_tower_is_named(change, message):
    data = json.loads(json.dumps(tiny_config().to_dict()))
    data["vision_config"][0].update(change)
    with pytest.raises(CheckpointError, match=message):
        OpenVLAConfig.from_dict(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_stats": ["bridge"]}, r"norm_stats must be an object, got \['bridge'\]"),
        ({"oft": "libero"}, "oft must be an object, got 'libero'"),
        ({"oft": {"chunk_size": "eight"}}, r"oft\.chunk_size must be an integer from 1 to 1000, got 'eight'"),
        ({"oft": {"chunk_size": -8}}, r"oft\.chunk_size must be an integer from 1 to 1000, got -8"),
        ({"oft": {"action_bounds": "median"}}, r"oft\.action_bounds must be one of quantiles, .*, got 'median'"),
        ({"oft": {"action_bounds": ["quantiles"]}}, r"oft\.action_bounds must be one of quantiles"),
        ({"oft": {"proprio": 3}}, r"oft\.proprio must be a list of names, got 3"),
        ({"oft": {"proprio": [["x"]]}}, r"oft\.proprio must be a list of names"),
        ({"pad_to_multiple_of": -64}, "leaves no room for 256 action bins"),
        ({"text_config": {"rope_theta": 10**400}}, "rope_theta of the decoder must be a number above 0"),
    ],
)
def test_what_no_training_wrote_is_named(change, message):
    with pytest.raises(CheckpointError, match=message):
        OpenVLAConfig.from_dict({**OPENVLA_7B, **change})


@pytest.mark.parametrize("name", ["hidden_size", "head_dim", "intermediate_size", "vocab_size"])
def test_a_size_that_no_memory_holds_is_refused_before_anything_is_built(name):
    with pytest.raises(CheckpointError, match=f"{name} of the decoder is 1000000000000, and no model has over"):
        build_empty(OpenVLAConfig.from_dict({**OPENVLA_7B, "text_config": {name: 10**12}}))

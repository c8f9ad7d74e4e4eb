from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import NORM_STATS, random_model, tiny_config, write_checkpoint

from flashvla_ros.bench.baselines import transformers_decoder
from flashvla_ros.core.errors import ActionError, CheckpointError, ObservationError, SettingsError
from flashvla_ros.core.policy import Policy, Request
from flashvla_ros.core.settings import ModelSettings, PruningSettings
from flashvla_ros.core.types import Observation
from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy
from flashvla_ros.vla.backend import Backend
from flashvla_ros.vla.pruning.select import METHODS
from flashvla_ros.vla.tokenizer import load_tokenizer

NONE = PruningSettings(method="none")
ICS = PruningSettings(method="ics", keep_ratio=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def policy(folder) -> Policy:
    return OpenVLAPolicy.load(ModelSettings(checkpoint=str(folder), device="cpu"))


def observation(seed: int = 0, instruction: str = "open the drawer", stamp_s: float = 1.0) -> Observation:
    blocks = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    image = blocks.repeat(20, axis=0).repeat(20, axis=1)
    return Observation({"camera": image}, instruction, stamp_s)


def test_inference_has_everything(policy):
    result = policy.infer(Request(observation(), ICS))
    assert (policy.action_size, policy.visual_tokens) == (4, 16)
    assert result.action.shape == result.normalized.shape == (1, 4)
    assert result.action.dtype == np.float64
    assert result.tokens.shape == (4,)
    assert result.kept.shape == (8,)
    assert result.visual_tokens == 16
    assert list(result.timings_s) == ["preprocess", "vision", "prefill", "scoring", "decode"]
    assert min(result.timings_s.values()) > 0


def test_action_follows_from_tokens_and_statistics(policy):
    result = policy.infer(Request(observation(), NONE))
    bins = 1023 - result.tokens
    assert ((bins >= 0) & (bins < 255)).all()
    np.testing.assert_allclose(result.normalized[0], -1 + (2 * bins + 1) / 255)
    np.testing.assert_allclose(result.action[0], result.normalized[0] * [0.01, 0.01, 0.01, 1.0])


def test_same_observation_same_result(policy):
    for pruning in (NONE, ICS, PruningSettings(method="random", keep_ratio=0.5)):
        first = policy.infer(Request(observation(), pruning))
        policy.infer(Request(observation(seed=1, stamp_s=2.0), pruning))
        again = policy.infer(Request(observation(), pruning))
        assert np.array_equal(first.action, again.action)
        assert first.kept is None or np.array_equal(first.kept, again.kept)


def test_random_sets_differ_between_observations(policy):
    pruning = PruningSettings(method="random", keep_ratio=0.5)
    kept = {tuple(policy.infer(Request(observation(stamp_s=stamp / 10), pruning)).kept) for stamp in range(5)}
    assert len(kept) == 5


def test_image_matters(policy):
    assert len({tuple(policy.infer(Request(observation(seed), NONE)).tokens) for seed in range(5)}) > 1


def test_instruction_matters(policy):
    tokens = {
        tuple(policy.infer(Request(observation(1, words), NONE)).tokens)
        for words in ("open it", "pick up the red block")
    }
    assert len(tokens) == 2


def test_nothing_is_scored_without_a_method(policy):
    assert policy.infer(Request(observation(), NONE)).kept is None


def test_pruning_can_change_at_every_step(policy):
    sizes = [
        len(policy.infer(Request(observation(), PruningSettings(keep_ratio=ratio))).kept) for ratio in (0.25, 1.0, 0.5)
    ]
    assert sizes == [4, 16, 8]


def test_policy_equals_the_plain_model(policy):
    """From pixels to tokens, against transformers' own forward over the whole sequence."""
    model = random_model(tiny_config())
    result = policy.infer(Request(observation(), NONE))
    pixels = policy.processor(observation().images["camera"])
    ids = torch.tensor([policy.prompts("open the drawer")])
    for token in result.tokens.tolist():
        with torch.inference_mode():
            logits = transformers_decoder(model)(inputs_embeds=model.embed(model.visual_tokens(pixels), ids)).logits
        assert int(logits[0, -1].argmax()) == token
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


def test_single_tower_runs(tmp_path):
    write_checkpoint(tmp_path, tiny_config(fused=False))
    assert OpenVLAPolicy.load(ModelSettings(checkpoint=str(tmp_path))).infer(
        Request(observation(), ICS)
    ).action.shape == (1, 4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs(folder, dtype):
    policy = OpenVLAPolicy.load(ModelSettings(checkpoint=str(folder), device="cpu", dtype=dtype))
    assert np.isfinite(policy.infer(Request(observation(), ICS)).action).all()


def test_warm_up_leaves_no_trace(folder, policy):
    other = OpenVLAPolicy.load(ModelSettings(checkpoint=str(folder), device="cpu"))
    other.warm_up(ICS)
    assert np.array_equal(
        other.infer(Request(observation(), ICS)).action, policy.infer(Request(observation(), ICS)).action
    )


def test_threads_are_set(folder):
    before = torch.get_num_threads()
    try:
        OpenVLAPolicy.load(ModelSettings(checkpoint=str(folder), threads=2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


IMAGE = np.zeros((8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({}, "sees one camera, got 0: none"),
        ({"left": IMAGE, "right": IMAGE}, "sees one camera, got 2: left, right"),
        ({"left": IMAGE[..., 0]}, r"'left' must be RGB, uint8 \[H, W, 3\], got uint8 \[8, 8\]"),
        ({"left": IMAGE.astype(float)}, "got float64"),
        ({"left": IMAGE[:0]}, r"got uint8 \[0, 8, 3\]"),
    ],
)
def test_unusable_images_are_refused(policy, images, message):
    with pytest.raises(ObservationError, match=message):
        policy.infer(Request(Observation(images, "open the drawer", 0.0), NONE))


def test_what_the_patches_cover_of_the_image_is_told(policy, monkeypatch):
    monkeypatch.setattr(policy, "processor", dataclasses.replace(policy.processor, strategy="resize-crop"))
    wide = np.zeros((60, 100, 3), dtype=np.uint8)
    boxes = policy.infer(Request(Observation({"left": wide}, "open the drawer", 0.0), NONE)).visible_boxes
    assert boxes == {"left": policy.processor.visible_box(60, 100)}
    assert boxes["left"] == pytest.approx((20.0, 0.0, 80.0, 60.0), abs=1.0)


def test_unusable_instructions_are_refused(policy):
    with pytest.raises(ObservationError, match="shorten it"):
        policy.infer(Request(observation(instruction="x" * 10_000), NONE))
    with pytest.raises(ObservationError, match="empty"):
        policy.infer(Request(observation(instruction=" "), NONE))


def test_tokens_beyond_the_table_of_embeddings_are_refused(tmp_path):
    """They would end the step with an IndexError, and on CUDA the process's use of the GPU."""
    write_checkpoint(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.add_tokens([f"<extra{index}>" for index in range(64)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="tokenizer has a token 1088, and the table of embeddings 1088 rows"):
        OpenVLAPolicy.load(ModelSettings(checkpoint=str(tmp_path), device="cpu"))


def test_visual_tokens_beyond_the_longest_sequence_are_refused(tmp_path):
    write_checkpoint(tmp_path, tiny_config(llm_max_length=10))
    with pytest.raises(CheckpointError, match="leave room for a prompt of -10 tokens"):
        OpenVLAPolicy.load(ModelSettings(checkpoint=str(tmp_path), device="cpu"))


@pytest.mark.parametrize("engine", ["eager", "static"])
@pytest.mark.parametrize("method", METHODS)
def test_activations_that_are_not_finite_are_no_action_with_any_method(method, engine, folder):
    """Weights are finite when they load; what half precision cannot hold comes out of them."""
    policy = OpenVLAPolicy.load(ModelSettings(checkpoint=str(folder), device="cpu", engine=engine))
    policy.model.layers[0].self_attn.o_proj.weight.fill_(float("nan"))
    pruning = PruningSettings(method=method, keep_ratio=0.5, layer=2)
    with pytest.raises(ActionError, match="so the model says nothing"):
        policy.infer(Request(observation(), pruning))


def test_layer_beyond_the_decoder_is_refused_and_the_policy_goes_on(policy):
    with pytest.raises(SettingsError, match=r"pruning\.layer"):
        policy.infer(Request(observation(), PruningSettings(layer=9)))
    assert policy.infer(Request(observation(), ICS)).action.shape == (1, 4)


def test_wrong_unnorm_key_lists_those_there_are(tmp_path):
    stats = {"bridge": NORM_STATS["toy"], "kitchen": NORM_STATS["toy"]}
    write_checkpoint(tmp_path, tiny_config(norm_stats=stats))
    with pytest.raises(CheckpointError, match="'berlin' is not among the checkpoint's data sets: bridge, kitchen"):
        OpenVLAPolicy.load(ModelSettings(checkpoint=str(tmp_path), unnorm_key="berlin"))


def test_auto_says_why(caplog):
    with caplog.at_level(logging.INFO):
        backend = Backend.resolve(ModelSettings())
    if not torch.cuda.is_available():
        assert backend == Backend(torch.device("cpu"), torch.float32, "sdpa", "static")
        assert "engine static" in caplog.text
        assert "torch finds no CUDA GPU" in caplog.text
        assert "no FlashAttention 2, the device is cpu" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ModelSettings(device="gpu"), "model.device 'gpu' is not usable"),
        (ModelSettings(device="cuda:99"), "model.device 'cuda:99' is not usable"),
        (ModelSettings(device="cpu", attention="eager", engine="static"), "engine static computes attention with SDPA"),
        (ModelSettings(device="meta"), "must be auto, cpu, cuda"),
        (ModelSettings(device="cpu", attention="flash_attention_2"), "cannot run here, the device is cpu"),
    ],
)
def test_what_this_machine_lacks_is_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        Backend.resolve(settings)


def test_temporal_pruning_compares_with_the_frame_that_it_is_given(policy):
    pruning = PruningSettings(method="temporal", keep_ratio=0.25)
    first = policy.infer(Request(observation(seed=1), pruning))
    assert len(first.kept) == 16
    assert first.picture.shape == (1, 56, 56, 3)
    image = next(iter(observation(seed=1).images.values())).copy()
    image[:15, :20] = 255 - image[:15, :20]  # the first of 4 x 4 patches
    moved = Observation({"camera": image}, "open the drawer", 1.1)
    second = policy.infer(Request(moved, pruning, first))
    assert len(second.kept) == 4
    assert 0 in second.kept
    policy.infer(Request(observation(seed=2), pruning, second))
    assert np.array_equal(policy.infer(Request(moved, pruning, first)).kept, second.kept)
    assert policy.infer(Request(observation(), ICS, first)).picture is None
    assert len(policy.infer(Request(moved, pruning, policy.infer(Request(observation(), ICS)))).kept) == 16

"""Visual-token FLOPs against figures of the paper's own model."""

from __future__ import annotations

import pytest

from flashvla_ros.core.flops import DecoderSize, ModelSize, TowerSize

LLAMA_7B = DecoderSize(layers=32, width=4096, inner=11008)


def test_one_layer_by_hand():
    assert DecoderSize(layers=1, width=2, inner=3).layer_flops(5) == 5 * (4 * 4 + 2 * 2 * 3) + 2 * 25 * 2


def test_openvla_with_160_of_256_tokens_from_layer_2_on():
    assert LLAMA_7B.visual_share(256, 160, 2) == pytest.approx(0.646, abs=5e-4)


def test_nothing_dropped_costs_everything():
    assert LLAMA_7B.visual_share(256, 256, 2) == 1.0
    assert LLAMA_7B.visual_share(256, 10, 32) == LLAMA_7B.visual_share(256, 10, 99) == 1.0


def test_sizes_travel_as_one_word():
    assert str(LLAMA_7B) == "32x4096x11008"
    assert DecoderSize.parse(str(LLAMA_7B)) == LLAMA_7B
    for text in ("", "32", "32x4096", "0x1x1", "axbxc"):
        with pytest.raises(ValueError):  # noqa: PT011  # three kinds of it
            DecoderSize.parse(text)


def test_less_is_cheaper():
    shares = [LLAMA_7B.visual_share(256, kept, 2) for kept in (16, 64, 160, 256)]
    assert shares == sorted(shares)
    assert shares[0] > 2 / 32


def test_whole_model_by_hand():
    tower = TowerSize(layers=1, width=2, inner=3, patches=4, extra=1, pixels=6)
    assert tower.flops() == 2 * (4 * 6 * 2 + 5 * (4 * 4 + 2 * 2 * 3) + 2 * 25 * 2)
    model = ModelSize((tower,), ((2, 2),), DecoderSize(layers=1, width=2, inner=3), kv_width=2, vocabulary=10)
    weights = 4 * 4 + 3 * 2 * 3
    prefill, decode = 7 * weights + 2 * 49 * 2, weights + 2 * 8 * 2
    expected = tower.flops() + 2 * 4 * 4 + 2 * (prefill + decode) + 2 * 2 * 2 * 10
    assert model.inference_flops(kept=4, layer=0, text=3, actions=2) == expected


def test_pruning_saves_less_end_to_end_than_on_visual_tokens():
    towers = (TowerSize(23, 1024, 4096, 256, 5, 588), TowerSize(26, 1152, 4304, 256, 0, 588))
    projector = ((2176, 8704), (8704, 4096), (4096, 4096))
    openvla = ModelSize(towers, projector, LLAMA_7B, kv_width=4096, vocabulary=32064)
    whole = openvla.inference_flops(256, 2, 20, 7)
    assert whole == pytest.approx(4.1e12, rel=0.1)
    assert LLAMA_7B.visual_share(256, 160, 2) < openvla.inference_flops(160, 2, 20, 7) / whole < 0.75


def test_pruned_and_drafted_model_by_hand() -> None:
    """Two images, two layers of which the second sees fewer tokens, a draft of two, one of them accepted."""
    tower = TowerSize(layers=2, width=3, inner=5, patches=4, extra=1, pixels=6)
    assert tower.flops() == 2 * (4 * 6 * 3 + 2 * (5 * (4 * 9 + 2 * 3 * 5) + 2 * 25 * 3))
    decoder = DecoderSize(layers=2, width=4, inner=3)
    model = ModelSize((tower,), ((2, 3), (3, 4)), decoder, kv_width=2, vocabulary=10, images=2)
    assert model.vision_flops() == 2 * tower.flops() + 2 * 8 * (2 * 3 + 3 * 4)
    weights = 2 * 4 * (4 + 2) + 3 * 4 * 3  # query and output, keys and values; three matrices of the MLP

    def layer(seen: int) -> int:
        """Three tokens of the prompt and the draft behind the visual ones, then two tokens one by one."""
        prompt = seen + 3 + 2
        decoded = sum(weights + 2 * (seen + 3 + step) * 4 for step in (2, 3))
        return 2 * (prompt * weights + 2 * prompt * prompt * 4) + 2 * decoded

    expected = model.vision_flops() + layer(8) + layer(5) + (1 + 2 + 2) * 2 * 4 * 10
    assert model.inference_flops(kept=5, layer=1, text=3, actions=4, drafted=2, settled=2) == expected


@pytest.mark.parametrize("text", ["0x1x1", "1x0x1", "1x1x0", "1x1x-1"])
def test_sizes_are_positive(text: str) -> None:
    with pytest.raises(ValueError, match=f"sizes must be positive, got '{text}'"):
        DecoderSize.parse(text)
    assert DecoderSize.parse("1x1x1") == DecoderSize(1, 1, 1)

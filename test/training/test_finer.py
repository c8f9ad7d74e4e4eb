"""A policy with smaller patches starts from the weights of one with larger ones."""

from __future__ import annotations

import dataclasses

import torch
from torch.nn import functional

from flashvla_ros.vla.model import PrismaticVLM
from training.architecture import DemoSize, demo_config
from training.finer import finer
from training.loss import StateHead

COARSE = DemoSize(image_size=32, patch_size=16, tower_width=16, tower_layers=1, decoder_width=32, decoder_layers=1)
FINE = dataclasses.replace(COARSE, patch_size=8)


def test_weights_fit_a_model_with_smaller_patches() -> None:
    coarse, fine = (PrismaticVLM(demo_config(size)) for size in (COARSE, FINE))
    weights = finer(coarse.state_dict(), COARSE, FINE)
    fine.load_state_dict(weights)
    changed = {name for name, value in coarse.state_dict().items() if weights[name].shape != value.shape}
    assert changed == {f"towers.{i}.{part}" for i in (0, 1) for part in ("pos_embed", "patch_embed.proj.weight")}
    assert finer(coarse.state_dict(), COARSE, COARSE).keys() == weights.keys()


def test_a_small_patch_is_seen_as_the_same_enlarged() -> None:
    name, kernel, picture = "towers.0.patch_embed.proj.weight", torch.rand(5, 3, 16, 16), torch.rand(1, 3, 8, 8)
    small = finer({name: kernel}, COARSE, FINE)[name]
    enlarged = functional.interpolate(picture, size=(16, 16), mode="bilinear")
    torch.testing.assert_close(functional.conv2d(picture, small), functional.conv2d(enlarged, kernel))


def test_position_embeddings_keep_their_places() -> None:
    rows = torch.arange(8.0)[:, None].expand(8, 8).reshape(1, 64, 1)  # a ramp down the picture, the same in each column
    size = dataclasses.replace(COARSE, image_size=128)
    fine = finer({"pos_embed": rows}, size, dataclasses.replace(FINE, image_size=128))["pos_embed"].view(16, 16)
    assert torch.allclose(fine, fine[:, :1].expand(16, 16), atol=1e-5)
    torch.testing.assert_close(fine[4:-4, 0], (torch.arange(16.0)[4:-4] - 0.5) / 2, atol=0.05, rtol=0)


def test_the_read_out_of_what_four_patches_share_is_the_old_one() -> None:
    head, cells = StateHead(4 * 6, 3), torch.randn(2, 2, 2, 6)
    weights = finer(head.state_dict(), COARSE, FINE)
    shared = cells.repeat_interleave(2, 1).repeat_interleave(2, 2)
    fine = StateHead(16 * 6, 3)
    fine.load_state_dict(weights)
    torch.testing.assert_close(fine(shared.flatten(1, 2)), head(cells.flatten(1, 2)))

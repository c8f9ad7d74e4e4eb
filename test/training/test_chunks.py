"""Chunks: the training pass is the policy's, it learns what pictures show, and it goes on where it was stopped."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_fit import write_evaluation

from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import ModelSettings, PruningSettings
from flashvla_ros.core.types import Observation
from flashvla_ros.vla.arch.oft.head import L1Head
from flashvla_ros.vla.arch.oft.policy import OFTPolicy
from flashvla_ros.vla.model import PrismaticVLM
from training.architecture import DemoSize, demo_config, demo_tokenizer
from training.batches import Demonstrations
from training.chunks import ChunkTrainer
from training.dataset import AUXILIARY, DatasetError, episode_path, write_episode, write_meta
from training.fit import CHECKPOINT, STATE, TOKENS, fit
from training.forcing import pad_prompts
from training.parallel import chunk_rows
from training.publish import publish
from training.saving import save_checkpoint
from training.trainer import FitConfig

INSTRUCTIONS = ["open the drawer", "please close the drawer"]
SIZE = DemoSize(28, 14, tower_width=16, tower_layers=2, tower_heads=2, decoder_width=16, decoder_layers=3)
CONFIG = FitConfig(steps=4, batch=4, learning_rate=1e-2, warmup=1, save_every=2, dropout_share=0.5, size=SIZE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data, where bright pictures go with a chunk that rises and dark ones with one that falls; and a checkpoint."""
    data, base = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("base")
    meta = {"tasks": ["drawer-open"], "seed": 0, "instructions": INSTRUCTIONS, "image_size": SIZE.image_size}
    write_meta(data, {**meta, "chunk": 3, "every": 2})
    rng = np.random.default_rng(0)
    rising = np.linspace(0.0, 0.6, 3, dtype=np.float32)[:, None] * np.ones(4, np.float32)
    for number in range(20):
        count, bright = 6, number % 2
        write_episode(
            episode_path(data, "drawer-open", number),
            images=rng.integers(100 * bright, 100 + 100 * bright, (count, 28, 28, 3), dtype=np.uint8),
            actions=np.tile(rising if bright else -rising, (count, 1, 1)),
            instruction=rng.integers(0, 2, count).astype(np.uint8),
            auxiliary=rng.normal(size=(count, len(AUXILIARY))).astype(np.float32),
            done=np.ones(count, dtype=bool),
        )
    torch.manual_seed(0)
    save_checkpoint(base, PrismaticVLM(demo_config(SIZE)), demo_tokenizer(INSTRUCTIONS))
    return data, base


def test_the_pass_of_training_is_the_policys(folders: tuple[Path, Path], tmp_path: Path) -> None:
    data, base = folders
    fit(data, tmp_path, dataclasses.replace(CONFIG, steps=40, save_every=40), init=base)
    first, last = (json.loads(line)["action"] for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert last < 0.95 * first
    policy = OFTPolicy.load(ModelSettings(checkpoint=str(tmp_path / CHECKPOINT), device="cpu"))
    image = np.random.default_rng(1).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    said = []
    for instruction in INSTRUCTIONS:
        observation = Observation({"image": image}, instruction, stamp_s=0.0)
        said.append(policy.infer(Request(observation, PruningSettings(method="none"))).normalized)
    prompts, mask = pad_prompts([policy.prompts(line) for line in INSTRUCTIONS], pad_id=0)
    head = L1Head(64, 16, 4)
    head.load_state_dict(torch.load(tmp_path / STATE, weights_only=True)["action_head"])
    with torch.no_grad():
        visual = policy.model.visual_tokens(policy.processor(image)).expand(2, -1, -1)
        rows = chunk_rows(policy.model, visual, prompts, 12, attention_mask=mask)
        taught = head.half().float()(rows.reshape(2, 3, -1))
    np.testing.assert_allclose(np.stack(said), taught, atol=1e-5)


def test_the_card_says_what_the_chunks_were_made_from(folders: tuple[Path, Path], tmp_path: Path) -> None:
    data, base = folders
    run, out, results = tmp_path / "run", tmp_path / "model", tmp_path / "results.json"
    fit(data, run, CONFIG, init=base)
    write_evaluation(results, run)
    publish(run, [results], out)
    card = (out / "README.md").read_text()
    assert "OpenVLA-OFT's architecture" in card
    assert "an L1 head that makes 3 time steps" in card
    assert f"from `models/{base.name}`; then 4 steps of 4 frames" in card
    assert f"--init models/{base.name} --out RUN" in card
    assert "--seed 0 --chunk 3 --every 2\n" in card
    assert "nats" not in card
    assert OFTPolicy.load(ModelSettings(checkpoint=str(out), device="cpu")).chunk_size == 3


def test_a_resumed_run_equals_an_uninterrupted_one(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, base = folders
    fit(data, tmp_path / "whole", CONFIG, init=base)
    real_step = ChunkTrainer.train_step

    def interrupted_step(self: ChunkTrainer, batches: Demonstrations) -> dict[str, float]:
        if self.step == 3:
            raise KeyboardInterrupt
        return real_step(self, batches)

    monkeypatch.setattr(ChunkTrainer, "train_step", interrupted_step)
    with pytest.raises(KeyboardInterrupt):
        fit(data, tmp_path / "parts", CONFIG, init=base)
    monkeypatch.undo()
    fit(data, tmp_path / "parts", CONFIG, init=base, resume=True)
    whole, parts = (torch.load(tmp_path / name / STATE, weights_only=True) for name in ("whole", "parts"))
    for part in ("model", "action_head"):
        assert all(torch.equal(whole[part][name], parts[part][name]) for name in whole[part])


def test_visual_tokens_of_other_weights_are_not_taken_and_a_finished_run_needs_none(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    data, base = folders
    other = tmp_path / "other"
    torch.manual_seed(1)
    save_checkpoint(other, PrismaticVLM(demo_config(SIZE)), demo_tokenizer(INSTRUCTIONS))
    with monkeypatch.context() as patch:
        patch.setattr(ChunkTrainer, "train_step", stopped)  # no state yet, but all tokens
        for name in ("run", "older"):
            with pytest.raises(KeyboardInterrupt):
                fit(data, tmp_path / name, CONFIG, init=base)
        progress = tmp_path / "older" / "tokens.done"
        before = (tmp_path / "run" / TOKENS).read_bytes()
        with pytest.raises(DatasetError, match="was made from another --init or other data"):
            fit(data, tmp_path / "run", CONFIG, init=other)
        assert (tmp_path / "run" / TOKENS).read_bytes() == before
        progress.write_text(progress.read_text().split()[0])  # as older runs have it
        with pytest.raises(KeyboardInterrupt):
            fit(data, tmp_path / "older", CONFIG, init=other)
    fit(data, tmp_path / "run", CONFIG, init=base)
    (tmp_path / "run" / TOKENS).unlink()
    assert fit(data, tmp_path / "run", CONFIG, init=other, resume=True) == {}
    assert not (tmp_path / "run" / TOKENS).exists()


def test_chunks_need_towers_that_are_trained(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="--init"):
        fit(folders[0], tmp_path, CONFIG)

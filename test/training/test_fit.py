"""Training on a handful of made-up frames: it learns, it can be resumed exactly, and what it writes is a checkpoint."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.policy import Request
from flashvla_ros.core.provenance import checkpoint_fingerprint
from flashvla_ros.core.settings import ModelSettings, PruningSettings
from flashvla_ros.core.types import Observation
from flashvla_ros.evaluation.meta import known_tasks
from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy
from flashvla_ros.vla.model import PrismaticVLM
from flashvla_ros.vla.processor import ImageProcessor
from training.architecture import DemoSize, demo_config, demo_tokenizer
from training.batches import Demonstrations
from training.dataset import AUXILIARY, DRIVEN, DatasetError, episode_id, episode_path, load, write_episode, write_meta
from training.fit import CHECKPOINT, DESCRIPTION, LOG, STATE, fit, last_save, main
from training.publish import publish
from training.trainer import FitConfig, Trainer, load_weights

INSTRUCTIONS = ["open the drawer", "please close the drawer"]
SIZE = DemoSize(
    28,
    patch_size=14,
    tower_width=16,
    tower_layers=2,
    tower_heads=2,
    decoder_width=16,
    decoder_layers=3,
    decoder_heads=2,
)
CONFIG = FitConfig(
    dropout_share=0.5,
    dropout_keep=(0.75, 0.5, 0.25),
    steps=4,
    batch=4,
    learning_rate=1e-2,
    warmup=1,
    save_every=2,
    size=SIZE,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright pictures go with one action, dark ones with another."""
    folder = tmp_path_factory.mktemp("data")
    write_meta(
        folder, {"tasks": ["drawer-open"], "seed": 0, "instructions": INSTRUCTIONS, "image_size": SIZE.image_size}
    )
    rng = np.random.default_rng(0)
    for number in range(20):
        count, bright = 6, number % 2
        write_episode(
            episode_path(folder, "drawer-open", number),
            images=rng.integers(100 * bright, 100 + 100 * bright, (count, 28, 28, 3), dtype=np.uint8),
            actions=np.full((count, 4), 0.5 if bright else -0.5, dtype=np.float32),
            instruction=rng.integers(0, 2, count).astype(np.uint8),
            auxiliary=rng.normal(size=(count, len(AUXILIARY))).astype(np.float32),
            done=np.ones(count, dtype=bool),
        )
    return folder


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["action"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_training_learns_what_the_pictures_show(data: Path, tmp_path: Path) -> None:
    validation = fit(data, tmp_path, dataclasses.replace(CONFIG, steps=120, save_every=120))
    first, *_, last = losses(tmp_path)
    assert last < 0.5 * first
    assert max(validation[f"error_{i}"] for i in range(4)) < 0.1


def test_resumed_run_equals_an_uninterrupted_one(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(data, tmp_path / "whole", CONFIG)
    taken = 0
    real_step = Trainer.train_step

    def interrupted_step(self: Trainer, batches: Demonstrations) -> dict[str, float]:
        nonlocal taken
        taken += 1
        if taken > 3:
            raise KeyboardInterrupt
        return real_step(self, batches)

    monkeypatch.setattr(Trainer, "train_step", interrupted_step)
    with pytest.raises(KeyboardInterrupt):
        fit(data, tmp_path / "parts", CONFIG)
    monkeypatch.undo()
    fit(data, tmp_path / "parts", CONFIG, resume=True)
    whole, parts = (torch.load(tmp_path / name / STATE, weights_only=True)["model"] for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_run_is_resumed_on_the_data_and_weights_that_it_began_with(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(trainer: Trainer, *_: object) -> None:
        if trainer.step == CONFIG.steps:
            raise KeyboardInterrupt

    for name, seed in (("one", 1), ("two", 2)):
        fit(data, tmp_path / name, dataclasses.replace(CONFIG, steps=2, seed=seed))
    grown, run = tmp_path / "grown", tmp_path / "run"
    shutil.copytree(data, grown)
    shutil.copyfile(episode_path(data, "drawer-open", 0), episode_path(grown, "x", 0))
    monkeypatch.setattr(Trainer, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        fit(data, run, CONFIG, init=tmp_path / "one")
    monkeypatch.undo()
    for folder, init in ((grown, "one"), (data, "two")):
        with pytest.raises(DatasetError, match="began with another --init or other data"):
            fit(folder, run, CONFIG, init=tmp_path / init, resume=True)
    state = torch.load(run / STATE, weights_only=True)
    shutil.copytree(run, tmp_path / "older")
    del state["origin"]  # as older runs have it
    torch.save(state, tmp_path / "older" / STATE)
    assert fit(grown, tmp_path / "older", CONFIG, init=tmp_path / "two", resume=True)
    assert fit(data, run, CONFIG, init=tmp_path / "one", resume=True)
    assert fit(grown, run, CONFIG, init=tmp_path / "two", resume=True) == {}  # it is finished


def test_a_run_that_is_stopped_at_its_end_is_finished_when_resumed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(trainer: Trainer, *_: object) -> None:
        if trainer.step == CONFIG.steps:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        fit(data, tmp_path, CONFIG)
    monkeypatch.undo()
    assert fit(data, tmp_path, CONFIG, resume=True)
    assert last_save(tmp_path)["step"] == CONFIG.steps
    assert (tmp_path / CHECKPOINT / "config.json").exists()


def test_checkpoint_runs_as_a_policy_with_any_instruction(data: Path, tmp_path: Path) -> None:
    fit(data, tmp_path, CONFIG)
    policy = OpenVLAPolicy.load(ModelSettings(checkpoint=str(tmp_path / CHECKPOINT), device="cpu"))
    assert policy.visual_tokens == 4
    for instruction in ("open the drawer", "Öffne die 引き出し!", "x" * 200):
        observation = Observation({"image": np.zeros((28, 28, 3), dtype=np.uint8)}, instruction, stamp_s=0.0)
        inference = policy.infer(Request(observation, PruningSettings(layer=2)))
        assert np.all(np.abs(inference.action) <= [0.01, 0.01, 0.01, 1.0])


def test_batches_are_normalised_as_the_policy_does(data: Path) -> None:
    frames, meta = load(data)
    trainer, demonstrations = _parts(data)
    batch = demonstrations.batch(np.arange(3))
    processor = ImageProcessor.from_config(trainer.model.config)
    expected = torch.cat([processor(image) for image in frames.images[:3]])
    torch.testing.assert_close(batch.pixel_values, expected)
    assert meta["instructions"] == INSTRUCTIONS


def test_validation_episodes_are_never_drawn(data: Path) -> None:
    frames, _ = load(data)
    _, demonstrations = _parts(data)
    held_out = set(frames.episode[demonstrations.validation].tolist())
    assert held_out == {episode_id(episode_path(data, "drawer-open", number)) for number in (5, 7, 18)}
    assert held_out.isdisjoint(frames.episode[demonstrations.training].tolist())


def test_failures_are_left_out_unless_a_policy_drove_and_nothing_changes_what_is_held_out(
    data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    before, _ = load(tmp_path)
    with np.load(episode_path(data, "drawer-open", 0)) as file:
        failed = dict(file) | {"done": np.zeros(len(file["done"]), dtype=bool)}
    for name in ("aaa", f"aaa-{DRIVEN}"):
        write_episode(episode_path(tmp_path, name, 0), **failed)
    added = set(load(tmp_path)[0].episode.tolist()) - set(before.episode.tolist())
    assert added == {episode_id(episode_path(tmp_path, f"aaa-{DRIVEN}", 0))}
    fit(tmp_path, tmp_path / "run", CONFIG)
    count = json.loads((tmp_path / "run" / DESCRIPTION).read_text())
    assert (count["episodes"], count["driven"]) == (20, 1)


def test_a_finished_run_is_not_described_anew_by_data_that_it_never_saw(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    fit(tmp_path / "data", tmp_path / "run", CONFIG)
    before = (tmp_path / "run" / DESCRIPTION).read_text()
    shutil.copyfile(episode_path(data, "drawer-open", 0), episode_path(tmp_path / "data", "x", 0))
    fit(tmp_path / "data", tmp_path / "run", CONFIG, resume=True)
    assert (tmp_path / "run" / DESCRIPTION).read_text() == before


@pytest.fixture(scope="module")
def pointing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each picture has a bright patch for one instruction and a dark one for the other: both say where to look."""
    folder = tmp_path_factory.mktemp("pointing")
    write_meta(folder, {"tasks": [], "seed": 0, "instructions": INSTRUCTIONS, "image_size": SIZE.image_size})
    rng = np.random.default_rng(0)
    for number in range(20):
        images = rng.integers(100, 150, (12, 28, 28, 3), dtype=np.uint8)
        cells = np.array([rng.choice(4, 2, replace=False) for _ in images])
        for image, pair in zip(images, cells, strict=True):
            for cell, grey in zip(pair, (255, 0), strict=True):
                y, x = 14 * (cell // 2), 14 * (cell % 2)
                image[y : y + 14, x : x + 14] = grey
        cell = cells.ravel()
        write_episode(
            episode_path(folder, "x", number),
            images=images,
            image=np.repeat(np.arange(12, dtype=np.int32), 2),
            actions=np.zeros((24, 4), np.float32),
            instruction=np.tile(np.array([0, 1], np.uint8), 12),
            auxiliary=np.zeros((24, 1), np.float32),
            seen=(np.stack([cell // 2, cell % 2], axis=1) / 2 + 0.25).astype(np.float32),
            done=np.ones(24, dtype=bool),
        )
    return folder


def test_attention_learns_to_go_where_the_instruction_points(pointing: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, dropout_share=0.0, batch=32, labels=2, steps=160, save_every=160)
    validation = fit(pointing, tmp_path, dataclasses.replace(config, look_weight=1.0))
    assert validation["look"] < 0.4  # ln 2 without the instruction, ln 4 without the picture


def test_steps_that_drop_tokens_look_at_none(pointing: Path, tmp_path: Path) -> None:
    fit(pointing, tmp_path, dataclasses.replace(CONFIG, dropout_share=0.5, steps=8, save_every=4))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(np.isfinite(line["look"]) for line in lines)


def test_a_batch_shows_one_image_for_several_instructions(pointing: Path) -> None:
    frames, _ = load(pointing)
    _, demonstrations = _parts(pointing)
    batch = demonstrations.draw(np.random.default_rng(0), 12, 0.0, shift=2, labels=3)
    assert batch.pixel_values.shape[0] == batch.state.shape[0] == 4
    shown = frames.image[batch.rows].reshape(4, 3)
    assert (shown == shown[:, :1]).all() and len(np.unique(shown)) > 1
    moved = batch.seen.numpy() - frames.seen[batch.rows]
    np.testing.assert_allclose(moved.reshape(4, 3, 2), np.repeat(moved[::3, None], 3, 1), atol=1e-6)
    assert np.abs(moved).max() == pytest.approx(2 / 28)


def _parts(data: Path, config: FitConfig = CONFIG) -> tuple[Trainer, Demonstrations]:
    frames, meta = load(data)
    model = PrismaticVLM(demo_config(config.size))
    demonstrations = Demonstrations(frames, meta["instructions"], model.config, demo_tokenizer(INSTRUCTIONS))
    return Trainer(config, model, frames.auxiliary.shape[1]), demonstrations


def test_a_shifted_image_has_moved_and_repeats_its_edge(data: Path) -> None:
    _, demonstrations = _parts(data, CONFIG)
    rows = demonstrations.training[:2]
    plain = demonstrations.batch(rows).pixel_values
    moved = demonstrations.batch(rows, shifts=np.array([[2, -3], [0, 1]])).pixel_values
    assert torch.equal(moved[0, :, 2:, :-3], plain[0, :, :-2, 3:])
    assert torch.equal(moved[0, :, :2, :-3], plain[0, :, :1, 3:].expand(-1, 2, -1))
    assert torch.equal(moved[1, :, :, 1:], plain[1, :, :, :-1])
    drawn = demonstrations.draw(np.random.default_rng(0), 8, 0.0, shift=3)
    assert not torch.equal(drawn.pixel_values, demonstrations.batch(drawn.rows).pixel_values)


def write_evaluation(path: Path, run: Path) -> list[dict[str, Any]]:
    """Write what an evaluation of a run's checkpoint might have found, and return its rows."""
    checkpoint = {"name": "run", "sha256": checkpoint_fingerprint(run / CHECKPOINT), "visual_tokens": 4}
    row = {"mode": "dense", "task": "drawer-open", "perturbation": "none", "episodes": 50, "successes": 49}
    row |= {"reuse_rate": 0.0, "visual_flops_ratio": 1.0, "flops_ratio": 1.0, "latency_mean_ms": 30.0}
    row |= {"latency_p50_ms": 30.0, "latency_p95_ms": 40.0, "inference_p50_ms": 30.0}
    meta = {"checkpoint": checkpoint, "seeds": [0, 49], "free_running": False}
    meta |= {"device": "a machine", "versions": {"flashvla_ros": "0"}}
    meta |= {"modes": {"dense": {"gate.mode": "off"}}, "command": "flashvla-ros eval --checkpoint DIR --modes dense"}
    rows = [row, row | {"task": "all"}]
    path.write_text(json.dumps({"meta": meta, "rows": rows}))
    return rows


def test_model_card_is_made_of_the_runs_own_files(data: Path, tmp_path: Path) -> None:
    run, out, results = tmp_path / "run", tmp_path / "model", tmp_path / "results.json"
    fit(data, tmp_path / "before", dataclasses.replace(CONFIG, steps=2))
    stopped = tmp_path / "before" / DESCRIPTION  # of more steps, after two of them
    stopped.write_text(stopped.read_text().replace('"steps": 2,', '"steps": 9,'))
    fit(data, run, dataclasses.replace(CONFIG, state_rate=0.1), init=tmp_path / "before")
    rows = write_evaluation(results, run)
    publish(run, [results], out)
    card = (out / "README.md").read_text()
    assert "49/50" in card
    assert "102 frames of 20 expert episodes" in card
    assert "--steps 4" in card
    assert "2 steps of 4 frames, token dropout in 50% of them" in card
    assert "--init RUN-0 --out RUN --seed 0 --steps 4" in card
    assert "--state-rate 0.1" in card
    assert json.loads((out / "evaluation.json").read_text())["rows"] == rows
    assert "flashvla-ros eval --checkpoint RUN/checkpoint --modes dense --json EVAL-1.json" in card
    assert known_tasks(out) == ["drawer-open"]
    assert checkpoint_fingerprint(out) == checkpoint_fingerprint(run / CHECKPOINT)
    assert OpenVLAPolicy.load(ModelSettings(checkpoint=str(out), device="cpu")).visual_tokens == 4
    log = (run / LOG).read_text()
    (run / LOG).write_text("")
    with pytest.raises(FlashVLAError, match="has no saved step"):
        publish(run, [results], out)
    (run / LOG).write_text(log)
    description = json.loads((run / DESCRIPTION).read_text())
    (run / DESCRIPTION).write_text(json.dumps({**description, "config": {**description["config"], "steps": 5}}))
    with pytest.raises(FlashVLAError, match="--resume"):
        publish(run, [results], out)
    (run / CHECKPOINT / "config.json").write_text("{}")
    with pytest.raises(FlashVLAError, match="evaluates another checkpoint"):
        publish(run, [results], out)


def test_the_card_of_a_policy_for_libero_says_how_it_was_made(pointing: Path, tmp_path: Path) -> None:
    run, results, out = tmp_path / "plain", tmp_path / "evaluation.json", tmp_path / "models"
    fit(pointing, run, CONFIG)
    write_evaluation(results, run)
    description = json.loads((run / DESCRIPTION).read_text())
    del description["data"]["tasks"]
    description["data"]["suite"] = "libero_object"
    (run / DESCRIPTION).write_text(json.dumps(description))
    publish(run, [results], out)
    card = (out / "README.md").read_text()
    assert "432 labels of 216 pictures of 20 expert episodes" in card
    assert "in robosuite's units" in card and "Meta-World" not in card
    assert "    python -m training.libero --out RUNS --episodes" in card and "training.fit" not in card
    assert "flashvla-ros eval --checkpoint RUNS/plain/checkpoint" in card


def test_a_card_of_one_file_a_suite_has_a_table_for_each(pointing: Path, tmp_path: Path) -> None:
    run, files = tmp_path / "plain", [tmp_path / "official.json", tmp_path / "permuted.json"]
    fit(pointing, run, CONFIG)
    for file, suite in zip(files, ("libero_object", "libero_object_permuted"), strict=True):
        write_evaluation(file, run)
        results = json.loads(file.read_text())
        results["rows"][0]["task"] = f"{suite}/0"
        file.write_text(json.dumps(results))
    publish(run, files, tmp_path / "models")
    card = (tmp_path / "models" / "README.md").read_text()
    assert card.index("### libero_object\n") < card.index("### libero_object_permuted\n")
    assert card.count("49/50") == 4


def test_run_that_exists_is_not_overwritten(data: Path, tmp_path: Path) -> None:
    fit(data, tmp_path, CONFIG)
    with pytest.raises(FlashVLAError, match="--resume"):
        fit(data, tmp_path, CONFIG)
    with pytest.raises(FlashVLAError, match="other settings"):
        fit(data, tmp_path, dataclasses.replace(CONFIG, seed=1), resume=True)


def test_missing_data_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path / "none"), "--out", str(tmp_path / "out"), "--threads", "1"]) == 2
    error = capsys.readouterr().err
    assert "collect" in error
    assert error.count("\n") == 1


def test_a_run_starts_from_the_weights_of_another(data: Path, tmp_path: Path) -> None:
    fit(data, tmp_path / "one", CONFIG)
    trainer, _ = _parts(data, CONFIG)
    load_weights(tmp_path / "one" / STATE, trainer.modules(), SIZE)
    before = torch.load(tmp_path / "one" / STATE, weights_only=True)
    assert trainer.step == 0
    assert all(torch.equal(value, before["model"][name]) for name, value in trainer.model.state_dict().items())
    size = dataclasses.replace(SIZE, tower_width=32)
    wide, _ = _parts(data, dataclasses.replace(CONFIG, size=size))
    with pytest.raises(DatasetError, match="does not fit this run's sizes"):
        load_weights(tmp_path / "one" / STATE, wide.modules(), size)


def test_bfloat16_learns_what_the_pictures_show(data: Path, tmp_path: Path) -> None:
    validation = fit(data, tmp_path, dataclasses.replace(CONFIG, steps=120, save_every=120, precision="bfloat16"))
    assert max(validation[f"error_{i}"] for i in range(4)) < 0.1

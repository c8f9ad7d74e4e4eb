"""Recordings as a LeRobotDataset: what is written, read back with the libraries that LeRobot reads with."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from bag_factory import (
    EPISODE,
    GATE,
    IMAGE,
    START_NS,
    STORE,
    STRING,
    drive,
    header,
    message,
    picture,
    raw_image,
    text,
    write_bag,
)

from flashvla_ros import __main__ as cli
from flashvla_ros.core.provenance import Provenance
from flashvla_ros.core.settings import Settings

STARTED, ENDED = 0, 2
PERIOD_NS = 10**8
EPISODES = ((6, True), (5, False))  # steps, and success


def command(number: int) -> np.ndarray:
    return np.random.default_rng(number).uniform(-1.0, 1.0, len(Settings().action.names))


def write_episodes(path, *, start_ns=START_NS, end=True, reported=(), early_ns=0):
    """A recording at 10 Hz of the episodes above, with one idle image after each; actions that no float32 holds.

    Joints may be reported, and episodes by a clock that is early.
    """
    record = Provenance(Settings(), {}, {}).to_json()
    messages = [("/flashvla/settings", STRING, start_ns - 10, text(record))]
    joints = STORE.types["sensor_msgs/msg/JointState"]
    for at_ns, positions in reported:
        said = joints(header(at_ns), list(positions), np.array(list(positions.values())), np.empty(0), np.empty(0))
        messages.append(("/joint_states", "sensor_msgs/msg/JointState", at_ns, said))
    number, at_ns = 0, start_ns
    for episode, (steps, success) in enumerate(EPISODES):
        started = message(EPISODE, at_ns - 5 - early_ns, event=STARTED, episode=episode)
        messages.append(("/episode", EPISODE, at_ns - 5, started))
        for step in range(steps + 1):
            messages.append(("/image", IMAGE, at_ns, raw_image(picture(number), at_ns)))
            if step < steps:
                status = message(
                    *(GATE, at_ns),
                    step=number,
                    epoch=episode,
                    instruction=f"push {episode}",
                    decision=step % 2,
                    reason="angle",
                    action=command(number),
                    angle_deg=np.nan,
                )
                messages.append(("/flashvla/gate", GATE, at_ns, status))
            number, at_ns = number + 1, at_ns + PERIOD_NS
        ended_ns = at_ns - PERIOD_NS - 5
        ended = message(EPISODE, ended_ns - early_ns, event=ENDED, success=success, error="" if success else "fell")
        if end or not episode:
            messages.append(("/episode", EPISODE, ended_ns, ended))
    return write_bag(path, sorted(messages, key=lambda entry: entry[2]))


def export(folder, *arguments):
    pytest.importorskip("av", reason="the extra `export` is not installed")
    pytest.importorskip("pyarrow", reason="the extra `export` is not installed")
    return cli.main(["export", *map(str, arguments), "--lerobot", str(folder)])


def table(folder, path):
    from pyarrow import parquet

    return parquet.read_table(folder / path).to_pylist()


def frames(path):
    import av

    with av.open(str(path)) as container:
        return [(float(frame.pts * frame.time_base), frame.to_ndarray(format="rgb24")) for frame in container.decode()]


def test_a_dataset_has_what_the_bag_has(tmp_path, capsys):
    folder = tmp_path / "dataset"
    assert export(folder, write_episodes(tmp_path / "bag")) == 0
    assert "bag: 5 frames, failed (fell)" in capsys.readouterr().out
    info = json.loads((folder / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["splits"]) == ("v3.0", 10, {"train": "0:2"})
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (2, 11, 2)
    first = 0
    for number, (steps, success) in enumerate(EPISODES):
        rows = table(folder, f"data/chunk-000/file-{number:03d}.parquet")
        assert set(rows[0]) == {name for name, value in info["features"].items() if value["dtype"] != "video"}
        (about,) = table(folder, f"meta/episodes/chunk-000/file-{number:03d}.parquet")
        assert (about["success"], about["length"], about["tasks"]) == (success, steps, [f"push {number}"])
        assert [row["next.done"] for row in rows] == [False] * (steps - 1) + [True]
        assert [row["next.success"] for row in rows] == [False] * (steps - 1) + [success]
        assert [row["gate.reuse"] for row in rows] == [bool(step % 2) for step in range(steps)]
        videos = frames(folder / f"videos/observation.images.image/chunk-000/file-{number:03d}.mp4")
        assert len(videos) == len(rows) == steps
        for step, (row, (at_s, image)) in enumerate(zip(rows, videos, strict=True)):
            recorded = first + number + step  # an idle image lies between the episodes
            assert row["command"] == command(recorded).tolist()
            assert row["action"] == command(recorded).astype(np.float32).tolist()
            assert (row["index"], row["frame_index"], row["stamp_ns"]) == (
                first + step,
                step,
                START_NS + recorded * PERIOD_NS,
            )
            assert at_s == pytest.approx(row["timestamp"], abs=1e-4)  # LeRobot's tolerance
            assert np.abs(image.astype(float) - picture(recorded)).mean() < 12.0
        first += steps


def test_statistics_are_those_of_all_frames(tmp_path):
    folder = tmp_path / "dataset"
    export(folder, write_episodes(tmp_path / "bag"))
    stats = json.loads((folder / "meta/stats.json").read_text())
    numbers = [*range(6), *range(7, 12)]
    actions = np.stack([command(number) for number in numbers]).astype(np.float32).astype(float)
    for name, of in (("mean", np.mean), ("std", np.std), ("min", np.min), ("max", np.max)):
        np.testing.assert_allclose(stats["action"][name], of(actions, axis=0), rtol=1e-12)
    pixels = np.stack([picture(number)[::4, ::4] for number in numbers]) / 255.0
    image = stats["observation.images.image"]
    np.testing.assert_allclose(np.squeeze(image["mean"]), pixels.mean(axis=(0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(np.squeeze(image["max"]), pixels.max(axis=(0, 1, 2)))
    assert np.shape(image["q99"]) == (3, 1, 1)
    assert stats["action"]["count"] == image["count"] == [11]


def test_an_interrupted_export_goes_on_where_it_was(tmp_path, capsys, monkeypatch):
    bag, folder = write_episodes(tmp_path / "bag"), tmp_path / "dataset"
    pytest.importorskip("av", reason="the extra `export` is not installed")
    pytest.importorskip("pyarrow", reason="the extra `export` is not installed")
    from flashvla_ros.bags import dataset

    add, count = dataset._Video.add, iter(range(100))

    def interrupted(video, image):
        if next(count) == 8:
            raise KeyboardInterrupt
        add(video, image)

    with monkeypatch.context() as patch:
        patch.setattr(dataset._Video, "add", interrupted)
        assert export(folder, bag) == 130
    assert json.loads((folder / "meta/info.json").read_text())["total_episodes"] == 1
    assert export(folder, bag) == export(folder, bag) == 0
    assert "2 of 2 episodes are there already" in capsys.readouterr().out
    assert export(tmp_path / "whole", bag) == 0
    for name in ("meta/info.json", "meta/stats.json"):
        assert (folder / name).read_text() == (tmp_path / "whole" / name).read_text()
    last = [str(table(path, "data/chunk-000/file-001.parquet")) for path in (folder, tmp_path / "whole")]
    assert last[0] == last[1]  # as text, for NaN equals NaN there


def test_another_bag_is_added_and_an_end_that_was_not_recorded_is_unknown(tmp_path):
    folder = tmp_path / "dataset"
    later = write_episodes(tmp_path / "later", start_ns=START_NS + 10**12, end=False)
    assert export(folder, write_episodes(tmp_path / "bag"), later) == 0
    (about,) = table(folder, "meta/episodes/chunk-000/file-003.parquet")
    assert (about["bag"], about["success"], about["dataset_from_index"]) == ("later", None, 17)


def test_what_cannot_be_exported_is_one_line(tmp_path, capsys):
    cameras = write_bag(tmp_path / "cameras", drive(3))
    assert export(tmp_path / "dataset", cameras) == 2
    assert "has no steps of the node (~/gate), and so no actions" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    assert export(tmp_path / "mine", cameras) == 2
    assert "is not a LeRobot dataset, and not empty" in capsys.readouterr().err
    bag, folder = write_episodes(tmp_path / "bag"), tmp_path / "dataset"
    assert export(folder, bag) == 0
    later = write_episodes(tmp_path / "later", start_ns=START_NS + 10**12)
    assert cli.main(["export", str(later), "--lerobot", str(folder), "--fps", "5"]) == 2
    assert "has 10 frames a second, not 5" in capsys.readouterr().err


def test_a_robot_that_reports_one_joint_has_a_state(tmp_path):
    folder = tmp_path / "dataset"
    reported = [(START_NS + step * PERIOD_NS - 1, {"x": 0.25}) for step in range(13)]
    assert export(folder, write_episodes(tmp_path / "bag", reported=reported)) == 0
    rows = table(folder, "data/chunk-000/file-000.parquet")
    assert [row["observation.state"] for row in rows[:2]] == [0.25] * 2  # as LeRobot stores one number
    assert json.loads((folder / "meta/stats.json").read_text())["observation.state"]["mean"] == [0.25]


def test_a_state_that_is_reported_later_is_not_left_out_without_a_word(tmp_path, capsys):
    reported = [(START_NS + PERIOD_NS + 1, {"x": 0.25, "y": 0.5})]
    assert export(tmp_path / "dataset", write_episodes(tmp_path / "bag", reported=reported)) == 2
    assert "step 2 knows ['x', 'y'], and those before []" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("early_ns", "options", "words"),
    [(10**15, [], "none of its 11 steps is in one of its episodes"), (0, ["--every-image"], "leave --every-image out")],
)
def test_a_recording_of_which_nothing_can_be_exported_is_one_line(tmp_path, capsys, early_ns, options, words):
    assert export(tmp_path / "dataset", write_episodes(tmp_path / "bag", early_ns=early_ns), *options) == 2
    assert words in capsys.readouterr().err


def test_images_of_which_nobody_knows_whether_they_were_answered_are_refused(tmp_path, capsys):
    status = message(GATE, START_NS, instruction="push", action=command(0))
    messages = [("/instruction", STRING, START_NS - 1, text("push")), ("/flashvla/gate", GATE, START_NS, status)]
    messages += [("/image", IMAGE, START_NS + number, raw_image(picture(0), 0)) for number in range(2)]
    assert export(tmp_path / "dataset", write_bag(tmp_path / "bag", messages)) == 2
    assert "images have no stamps, so which the node answered cannot be told" in capsys.readouterr().err


def test_a_missing_extra_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.delitem(sys.modules, "flashvla_ros.bags.dataset", raising=False)
    assert cli.main(["export", str(tmp_path), "--lerobot", str(tmp_path / "dataset")]) == 2
    assert capsys.readouterr().err.startswith("flashvla-ros: export needs av, which is not installed: pip install")

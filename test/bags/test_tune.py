"""Tuning from recordings: the command, its report, its files, and the helper for users' tests."""

from __future__ import annotations

import html.parser
import json
import subprocess
import sys
import weakref

import numpy as np
import pytest
from bag_factory import GATE, START_NS, STRING, drive, message, text, write_bag
from checkpoints import write_checkpoint
from fakes import SPEC, ScriptedPolicy

from flashvla_ros import __main__ as cli
from flashvla_ros.bags import testing
from flashvla_ros.bags.answers import load_once
from flashvla_ros.bags.features import collect
from flashvla_ros.bags.options import Source
from flashvla_ros.cli.parameter_files import read_parameters
from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.provenance import Provenance, settings_digest
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import Inference
from flashvla_ros.vla.loading import LoadedPolicy

OPTIONS = ["--delta", "0,0.5", "--angle", "2,20", "--reuse", "1,3"]


class Turning(ScriptedPolicy):
    """Turns by a degree per frame of 0.1 s, and by forty where the square of the picture wraps around."""

    def __init__(self) -> None:
        super().__init__(answer=self._turn)
        self.shown: list[weakref.ref] = []
        self.most_alive = 0
        self.drops: set[bool] = set()
        self.angle = 0.0

    def _turn(self, request, _) -> Inference:
        observation = request.observation
        self.requests.clear()  # which hold the pictures
        self.drops.add(request.pruning.drop)
        self.shown.append(weakref.ref(observation))
        self.most_alive = max(self.most_alive, sum(shown() is not None for shown in self.shown))
        step = round(observation.stamp_s * 10) % 1000
        self.angle += np.radians(40 if step % 19 == 0 else 1)
        action = np.array([[0.5 * np.cos(self.angle), 0.5 * np.sin(self.angle), 0.0, 1.0]])
        return Inference(action * 0.01, action, np.zeros(4, dtype=np.int64), np.arange(40), 64)


@pytest.fixture
def turning(monkeypatch):
    """Every model that is loaded turns."""
    monkeypatch.setattr("flashvla_ros.bags.answers.load_policy", lambda _: LoadedPolicy(Turning()))
    load_once.cache_clear()
    yield
    load_once.cache_clear()


def tune(tmp_path, *arguments):
    """Run the command in a folder; return its exit code and the JSON."""
    files = ["--html", str(tmp_path / "t.html"), "--yaml", str(tmp_path / "t.yaml"), "--json", str(tmp_path / "t.json")]
    code = cli.main(["tune", *map(str, arguments), *OPTIONS, *files])
    return code, json.loads((tmp_path / "t.json").read_text())


@pytest.mark.usefixtures("turning")
def test_tune_recommends_within_the_error_and_writes_what_to_set(tmp_path, capsys):
    bag = write_bag(tmp_path / "bag", drive(60))
    code, result = tune(tmp_path, bag, "--max-error", "0.05")
    output = capsys.readouterr().out
    assert code == 0
    assert len(result["rows"]) == 8
    keys = {"delta", "max_angle_deg", "max_reuse", "reuse_rate", "error_p95", "recommended"}
    assert all(keys <= set(row) for row in result["rows"])
    (best,) = [row for row in result["rows"] if row["recommended"]]
    allowed = [row for row in result["rows"] if row["reuse_rate"] and row["error_p95"] <= 0.05]
    assert best["reuse_rate"] == max(row["reuse_rate"] for row in allowed) > 0.4
    calibrated = result["meta"]["calibrated"]
    assert [(row["risk"], row["steps"]) for row in calibrated] == [(0.02, 60), (0.05, 60), (0.1, 60)]
    assert output.count("with gate.calibration online") == 1
    assert set(best["by_dimension"]) == set(SPEC.names)
    for name in ("delta", "max_angle_deg", "max_reuse"):
        assert f"ros2 param set /flashvla gate.{name} {best[name]}" in output
    assert read_parameters(tmp_path / "t.yaml", "/left/arm") == {
        f"gate.{n}": best[n] for n in ("delta", "max_angle_deg", "max_reuse")
    }


@pytest.mark.usefixtures("turning")
def test_a_dry_run_shows_what_calibration_would_do_of_a_robot_that_moves(tmp_path):
    bag = write_bag(tmp_path / "bag", drive(60))
    found = [
        tune(tmp_path, bag, "--risk", "0.5", *more)[1]["meta"]["calibrated"]
        for more in ((), ("--set", "control.dry_run=true"), ("--set", "control.speed_scale=0"))
    ]
    assert found[0] == found[1] == found[2]
    assert found[0][0]["reused"] > 0


@pytest.mark.usefixtures("turning")
def test_where_the_gate_was_off_it_is_switched_on_with_the_thresholds(tmp_path, capsys):
    bag = write_bag(tmp_path / "bag", drive(60))
    code, result = tune(tmp_path, bag, "--max-error", "0.05", "--set", "gate.mode=off")
    output = capsys.readouterr().out
    (best,) = [row for row in result["rows"] if row["recommended"]]
    thresholds = {f"gate.{name}": best[name] for name in ("delta", "max_angle_deg", "max_reuse")}
    assert code == 0 and read_parameters(tmp_path / "t.yaml", "/arm") == {"gate.mode": "guarded", **thresholds}
    page = (tmp_path / "t.html").read_text()
    for words in ("now, were gate.mode guarded", "ros2 param set /flashvla gate.mode guarded"):
        assert words in output and words in page


@pytest.mark.usefixtures("turning")
def test_the_report_is_one_file_that_needs_nothing_else(tmp_path):
    bag = write_bag(tmp_path / "<bag>", drive(60))
    tune(tmp_path, bag, "--max-error", "0.05", "--node", "/left/arm", "--instruction", "go")
    page = (tmp_path / "t.html").read_text()
    sources = []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            sources.extend(value for name, value in attrs if name in ("src", "href"))

    Reader().feed(page)
    assert sum(source.startswith("data:image/png") for source in sources) == 2
    assert 1 <= sum(source.startswith("data:image/jpeg") for source in sources) <= 8
    assert all(source.startswith("data:") for source in sources)
    assert "&lt;bag&gt;" in page
    assert "ros2 param set /left/arm gate.delta" in page
    assert "width=device-width" in page  # a narrow window scrolls what is wide, in place of cutting it off
    assert "overflow-x: auto" in page
    assert page.count("<figcaption>") == sum(source.startswith("data:image/jpeg") for source in sources)
    assert "<b>reused</b>" in page or "model run: " in page


@pytest.mark.usefixtures("turning")
def test_a_long_run_shows_its_progress_where_there_is_no_terminal(tmp_path, capsys, monkeypatch):
    bag = write_bag(tmp_path / "bag", drive(30))
    tune(tmp_path, bag)
    assert "frame" not in capsys.readouterr().err  # it was short
    monkeypatch.setattr("flashvla_ros.bags.tuning.INTERVAL_S", 0.0)
    tune(tmp_path, bag)
    assert "30frame" in capsys.readouterr().err


def test_a_bar_is_drawn_rarely_where_there_is_no_terminal():
    words = "from flashvla_ros.cli.progress import INTERVAL_S; print(INTERVAL_S)"
    ended = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert float(ended.stdout) == 10.0


@pytest.mark.usefixtures("turning")
def test_nothing_within_the_error_is_said(tmp_path, capsys):
    bag = write_bag(tmp_path / "bag", drive(30))
    code, result = tune(tmp_path, bag, "--max-error", "0.0001", "--set", "gate.max_reuse=0")
    assert code == 0
    assert not any(row["recommended"] for row in result["rows"])
    assert ">nan<" not in (tmp_path / "t.html").read_text()
    assert "no p95 error is within --max-error 0.0001, the least is" in capsys.readouterr().out
    assert not (tmp_path / "t.yaml").exists()


@pytest.mark.usefixtures("turning")
def test_every_row_is_written_before_a_score_that_cannot_be_learnt(tmp_path, monkeypatch):
    def learn(_):
        raise SettingsError("no reuse is off")

    monkeypatch.setattr("flashvla_ros.bags.learning.learn", learn)
    code, result = tune(tmp_path, write_bag(tmp_path / "bag", drive(30)), "--score", tmp_path / "score.yaml")
    assert code == 2 and len(result["rows"]) == 8


@pytest.mark.usefixtures("turning")
def test_settings_without_token_sets_are_refused(tmp_path, capsys):
    bag = write_bag(tmp_path / "bag", drive(3))
    assert cli.main(["tune", str(bag), "--set", "pruning.method=none"]) == 2
    assert "add --set pruning.method=ics" in capsys.readouterr().err
    assert cli.main(["tune", str(bag), "--delta", "0.5,x"]) == 2
    assert "values of gate.delta are numbers" in capsys.readouterr().err


def test_frames_are_streamed(tmp_path):
    bag = write_bag(tmp_path / "bag", drive(40))
    policy = Turning()
    with Source().open(bag) as recording:
        features = collect(recording.frames, policy, Settings(), SPEC, lambda: None)
    assert len(features) == 40
    assert policy.most_alive <= 2
    assert policy.drops == {False}  # the decoder sees every token


@pytest.mark.usefixtures("turning")
def test_the_helper_gives_numbers_to_assert_on(tmp_path):
    bag = write_bag(tmp_path / "bag", drive(60))
    result = testing.evaluate_bag(bag, {"gate.delta": 0.5, "gate.max_angle_deg": 5.0, "gate.max_reuse": 1})
    assert result.steps == 60
    assert result.reuse_rate == pytest.approx(result.reasons["reuse"] / 60)
    assert 0.3 < result.reuse_rate < 0.6
    assert result.error_p50 == pytest.approx(2 * 0.5 * np.sin(np.radians(0.5)), rel=0.1)
    assert result.error_p50 <= result.error_p95 <= result.error_max
    nothing = testing.evaluate_bag(bag, {"gate.max_reuse": 0})
    assert (nothing.reuse_rate, nothing.error_max) == (0.0, 0.0)
    assert testing.replay_bag(bag).steps == 60
    with pytest.raises(SettingsError, match=r"did you mean gate\.delta"):
        testing.evaluate_bag(bag, {"gate.dleta": 0.5})


def test_a_policy_that_ran_elsewhere_answers_out_of_the_recording_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr("flashvla_ros.bags.answers.load_policy", lambda _: pytest.fail("another policy is asked"))
    settings = Settings().with_values({"model.remote": "ws://robot:8000", "gate.mode": "off"})
    record = Provenance(settings).to_json()
    told = {"settings_digest": settings_digest(settings), "instruction": "open the drawer", "answer": np.zeros(4)}
    stamps = [START_NS + number * 10**8 for number in range(3)]
    steps = [("/flashvla/gate", GATE, at, message(GATE, at, step=i, **told)) for i, at in enumerate(stamps)]
    settings_line = ("/flashvla/settings", STRING, START_NS - 10**9, text(record))
    bag = write_bag(tmp_path / "bag", sorted([settings_line, *drive(3), *steps], key=lambda entry: entry[2]))
    assert testing.replay_bag(bag).steps == 3
    with pytest.raises(SettingsError, match="robot:8000 drove the robot"):
        testing.evaluate_bag(bag)


@pytest.fixture(scope="module")
def bags(tmp_path_factory):
    """Two recordings and a real checkpoint, which other processes can load."""
    folder = tmp_path_factory.mktemp("bags")
    first = write_bag(folder / "first", drive(12))
    second = write_bag(folder / "second", drive(8, compressed=True, image_topic="/image/compressed"), "sqlite3")
    return [first, second], f"model.checkpoint={write_checkpoint(folder / 'checkpoint')}"


def rows_of(tmp_path, bags, *how):
    paths, checkpoint = bags
    code, result = tune(tmp_path, *paths, "--set", checkpoint, "--max-error", "2", *how)
    assert code == 0
    assert result["meta"]["steps"] == 20
    return result["rows"]


@pytest.mark.timeout(400)  # two processes import torch
def test_several_bags_fan_out_over_processes(tmp_path, bags):
    assert rows_of(tmp_path, bags, "--jobs", "2") == rows_of(tmp_path, bags)

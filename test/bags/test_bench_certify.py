"""``flashvla-ros bench --certify``: a sound engine, one that is broken on purpose, and what cannot be certified."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from bag_factory import START_NS, STRING, drive, text, write_bag
from checkpoints import LostMask, write_checkpoint

from flashvla_ros import __main__ as cli
from flashvla_ros.core.provenance import Provenance, checkpoint_fingerprint
from flashvla_ros.core.settings import Settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


def certify(folder: Path, count: int, out: Path, *more: str) -> tuple[int, dict]:
    command = ["bench", "--model", str(folder), "--threads", "1", "--certify", str(count), "--json", str(out), *more]
    return cli.main(command), json.loads(out.read_text())


def test_a_sound_engine_is_certified_on_a_bag_by_its_settings(folder, tmp_path, capsys) -> None:
    bag = write_bag(tmp_path / "bag", drive(3))
    code, results = certify(folder, 5, tmp_path / "c.json", "--bag", str(bag), "--set", "pruning.keep_ratio=0.5")
    assert code == 0 and "equal to the reference in all 3 frames (of 5 asked for" in capsys.readouterr().out
    rows, run = results["rows"], results["meta"]
    assert [row["equal"] for row in rows] == [True] * 3 and rows[0]["tokens"] == rows[0]["expected_tokens"]
    assert run["equal"] and run["pruning"]["keep_ratio"] == 0.5 and len(run["checkpoint"]) == 64
    digest = hashlib.sha256()
    for file in sorted(bag.iterdir()):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    assert run["frames"]["sha256"] == digest.hexdigest()


def test_the_recorded_checkpoint_and_options_count_where_none_are_given(folder, tmp_path, capsys) -> None:
    model = {"model.checkpoint": str(folder), "model.engine": "eager", "model.threads": 1}
    bags = {}
    for name, fingerprint in (("same", checkpoint_fingerprint(folder)), ("other", "f" * 64)):
        record = Provenance(Settings().with_values(model), fingerprint, {}).to_json()
        told = ("/flashvla/settings", STRING, START_NS - 10**9, text(record))
        bags[name] = str(write_bag(tmp_path / name, [told, *drive(2)]))
    out = tmp_path / "c.json"
    certify = ["bench", "--certify", "2", "--json", str(out), "--bag"]
    assert cli.main([*certify, bags["same"]]) == 2  # by the recorded engine
    assert cli.main([*certify, bags["same"], "--engine", "static"]) == 0
    run = json.loads(out.read_text())["meta"]
    assert (run["model"], run["engine"], run["threads"]) == (str(folder), "static", 1)
    assert cli.main([*certify, bags["other"], "--engine", "static"]) == 2
    assert cli.main([*certify, bags["same"], "--engine", "static", "--model", "demo"]) == 2
    eager, other, demo = capsys.readouterr().err.splitlines()
    assert "eager is the reference" in eager and "another checkpoint (ffffffffffff)" in other and "than demo" in demo


def test_an_engine_without_its_mask_is_not(folder, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("flashvla_ros.vla.engine.base.static_attention", lambda _name: LostMask())
    code, results = certify(folder, 3, tmp_path / "c.json")
    first, *others = [row for row in results["rows"] if not row["equal"]]
    assert code == 1 and not results["meta"]["equal"]
    said = f"differs in {1 + len(others)} of 3 frames; frame {first['frame']}: the engine static differs"
    assert said in capsys.readouterr().out


def test_the_reference_cannot_certify_itself_and_a_bag_alone_says_nothing(folder, tmp_path, capsys) -> None:
    assert cli.main(["bench", "--model", str(folder), "--certify", "1", "--engine", "eager"]) == 2
    assert cli.main(["bench", "--model", str(folder), "--bag", str(tmp_path)]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "eager is the reference" in first and "--bag says whose frames --certify takes" in second

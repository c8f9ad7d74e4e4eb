"""The record of settings, weights and platform."""

import pytest

from flashvla_ros.core.errors import CheckpointError, SettingsError
from flashvla_ros.core.provenance import Provenance, checkpoint_fingerprint, settings_digest
from flashvla_ros.core.settings import PARAMETERS, Settings


def test_a_record_reads_back_exactly():
    settings = Settings().with_values({"gate.delta": 0.1 + 0.2, "limits.upper": [1.0, 2.0, 3.0, 1e-17]})
    record = Provenance(settings, checkpoint="ab12", platform={"device": "cpu"})
    assert Provenance.from_json(record.to_json()) == record
    assert "\n" not in record.to_json()


def test_the_digest_tells_every_parameter_apart():
    default = settings_digest(Settings())
    assert settings_digest(Settings().with_values({"gate.delta": 0.5})) == default
    for name, value in {"gate.delta": 0.5000001, "limits.lower": [0.0] * 4, "control.stop_action": "hold"}.items():
        assert settings_digest(Settings().with_values({name: value})) != default
    assert len(default) == 16 and len(PARAMETERS) > 3


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"settings": {"gate.dleta": 1}, "checkpoint": "", "platform": {}}'])
def test_other_text_is_refused(text):
    with pytest.raises(SettingsError):
        Provenance.from_json(text)


def test_the_fingerprint_depends_on_names_and_contents_alone(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(bytes(5_000_000))
    (second / "runs").mkdir()
    for name in ("README.md", "evaluation.json", "certificate.json.episodes.jsonl", "state.json", "drawer-open.mp4"):
        (second / name).write_text("{}")  # beside a checkpoint, and no part of it
    assert checkpoint_fingerprint(first) == checkpoint_fingerprint(second)
    with (second / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\1")
    assert checkpoint_fingerprint(first) != checkpoint_fingerprint(second)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        checkpoint_fingerprint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no files"):
        checkpoint_fingerprint(tmp_path)

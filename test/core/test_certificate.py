"""What a certificate says of the settings in force."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flashvla_ros.core.certificate import Certificate, certification, compared, shipped
from flashvla_ros.core.settings import Settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"limits.upper": [1.0] * 4, "model.threads": 2}, "certified: at most 5.0% of episodes"),
        ({"gate.delta": 0.25}, "not certified: gate.delta is 0.25, the certificate has 0.5"),
        ({"gate.delta": 0.25, "pruning.layer": 1}, " and 1 more"),
        ({"action.dt_s": 0.05}, "not certified: action.dt_s is 0.05, the certificate has 0.1"),
        ({"model.dtype": "bfloat16"}, "not certified: model.dtype is bfloat16, the certificate has auto"),
        ({"control.speed_scale": 0.5}, "not certified: control.speed_scale is 0.5, the certificate has 1.0"),
        ({"control.ramp_s": 2.0}, "not certified: control.ramp_s is 2.0, the certificate has 0.0"),
        ({"action.gripper": [1.0, -1.0]}, "not certified: action.gripper is (1.0, -1.0), the certificate has"),
        ({"camera.names": ["front"], "control.rate_hz": 5.0}, "certified: at most 5.0% of episodes"),
    ],
)
def test_settings_that_decide_the_action_must_be_those_that_were_played(changes, words):
    played = Settings()
    certificate = Certificate(
        "guarded", "ab12", compared(played), ("door-open",), "", "0.1.0", "", 150, 2, 0.05, 0.95, 0.041, "cpu"
    )
    sound, why = certificate.verdict(played.with_values(changes), "ab12")
    assert words in why
    assert sound is not why.startswith("not")
    assert sound or ("more" in why) is (len(changes) > 1)
    assert certificate.verdict(played, "cd34") == (
        False,
        "not certified: the certificate is of another checkpoint (ab12)",
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"settings": ["gate.delta"]}, "its settings is ['gate.delta']"),
        ({"checkpoint": 7}, "its checkpoint is 7"),
        ({"confidence": "high"}, "its confidence is 'high'"),
        ({"tasks": "door-open"}, "its tasks is 'door-open'"),
        ({"bound": 0.5}, "its bound exceeds its risk"),
        ({"episodes": 0, "induced": 0}, "its bound exceeds its risk"),
        ({"risk": 5.0}, "its bound exceeds its risk"),
        ({"episodes": 150.5}, "its episodes is 150.5"),
        ({"confidence": 2.0}, "its confidence or its name is none"),
        ({"name": "\ud800"}, "its confidence or its name is none"),
        ({"name": "two\nlines"}, "its confidence or its name is none"),
    ],
)
def test_a_file_whose_values_are_of_another_type_is_no_certificate(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    file = tmp_path / "certificate.json"
    sound = Certificate("guarded", "ab12", {}, ("door-open",), "", "0.1.0", "", 150, 2, 0.05, 0.95, 0.041, "cpu")
    sound.write(file)
    assert Certificate.read(file) == sound
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    settings = Settings().with_values({"evidence.certificate": str(file)})
    assert certification(settings, "ab12") == (
        False,
        f"not certified: {file} is no certificate of flashvla-ros certify: {words}",
    )
    assert shipped(tmp_path) == {}


def test_a_certificate_of_another_version_certifies_nothing_here():
    other = Certificate(
        "guarded", "ab12", compared(Settings()), ("door-open",), "", "0.0.9", "", 150, 2, 0.05, 0.95, 0.041, "cpu"
    )
    assert other.verdict(Settings(), "ab12") == (
        False,
        "not certified: the certificate is of version 0.0.9 of this package",
    )


def test_a_checkpoint_brings_no_limits_and_no_time_outs_along(tmp_path: Path) -> None:
    values = {
        "gate.max_reuse": 1,
        "control.image_timeout_s": 60.0,
        "control.stop_action": "none",
        "limits.max_step": [],
    }
    Certificate("fast", "ab12", values, ("door-open",), "", "0.1.0", "", 150, 2, 0.05, 0.95, 0.041, "cpu").write(
        tmp_path / "certificate.json"
    )
    assert shipped(tmp_path) == {"gate.max_reuse": 1}


def test_a_certificate_that_does_not_say_all_is_made_again() -> None:
    said = {name: value for name, value in compared(Settings()).items() if name != "control.ramp_s"}
    old = Certificate("fast", "ab12", said, ("door-open",), "", "0.1.0", "", 150, 2, 0.05, 0.95, 0.041, "cpu")
    assert old.verdict(Settings(), "ab12") == (
        False,
        "not certified: the certificate does not say control.ramp_s: certify again",
    )

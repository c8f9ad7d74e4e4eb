"""Parameters from the command line."""

import pytest

from flashvla_ros.cli.overrides import parse_overrides
from flashvla_ros.core.errors import SettingsError


def test_every_kind_is_read():
    arguments = ["gate.delta=1", "gate.max_reuse=3", "gate.mode=off", "pruning.drop=false", "limits.lower=-1,0.5"]
    arguments += ["camera.names=left,right", "limits.upper=[1, 2]", "limits.max_step="]
    assert parse_overrides(arguments) == {
        "gate.delta": 1.0,
        "gate.max_reuse": 3,
        "gate.mode": "off",
        "pruning.drop": False,
        "limits.lower": (-1.0, 0.5),
        "camera.names": ("left", "right"),
        "limits.upper": (1.0, 2.0),
        "limits.max_step": (),
    }


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("gate.delta", "NAME=VALUE"),
        ("gate.dleta=1", "did you mean gate.delta"),
        ("gate.delta=much", "gate.delta must be of type float, got 'much'"),
        ("gate.delta=2", "from 0 to 1"),
        ("gate.delta=", "gate.delta must be of type float"),
        pytest.param("limits.lower=" + "[" * 10**5, "limits.lower must be of type float_array", id="deep"),
        ("limits.lower=1,x", "limits.lower must be of type float_array"),
    ],
)
def test_a_bad_argument_is_refused_with_its_rule(argument, words):
    with pytest.raises(SettingsError) as refusal:
        parse_overrides([argument])
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)

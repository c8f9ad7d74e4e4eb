"""A robot that a server drove is recorded, and the recording replayed without the server, bit for bit."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bag_factory import picture
from recording import recording

pytest.importorskip("rclpy")
pytest.importorskip("websockets", reason="the extra `remote` is not installed")
sys.path.append(str(Path(__file__).parents[1] / "nodes"))

from policy_bench import PolicyBench
from policy_server import ScriptedServer, chunk

from flashvla_ros import __main__ as cli
from flashvla_ros.remote.loading import FROM_SETTINGS

pytestmark = pytest.mark.timeout(400)  # the recorder is a process of its own, slow to start on a busy machine

PARAMETERS = {
    "remote__scale": [0.01, 0.01, 0.01, 1.0],
    "gate__tokenless_angle_deg": 90.0,
    "gate__max_angle_deg": 90.0,
    "gate__replan_after": 9,
    "gate__max_age_s": 10.0,
    "gate__scene_patches": 0,
    "control__prefetch": 3,
    "limits__max_step": [0.003, 1.0, 1.0, 2.0],  # so that commands are not answers
    "control__image_timeout_s": 10.0,
    "control__inference_timeout_s": 30.0,
}


def answer(_connection: Any, _message: dict, number: int) -> dict:
    time.sleep(0.1)
    return {"actions": chunk(0.004 * (-1) ** number, steps=12) * (1.0 + number / 7)}


def test_answers_come_from_the_bag(
    tmp_path: Path, serve: Callable[..., ScriptedServer], capsys: pytest.CaptureFixture[str]
) -> None:
    server, bag = serve(answer, good=0), tmp_path / "bag"
    bench = PolicyBench(factory=FROM_SETTINGS, model__remote=server.uri, **PARAMETERS)
    try:
        with recording(bag):
            assert bench.configure()
            bench.until(lambda: bench.image.get_subscription_count() > 1, "the recorder", timeout_s=120)
            bench.until(lambda: bench.node.count_subscribers("/flashvla/gate") > 1, "the recorder", timeout_s=120)
            bench.start()
            for index in range(36):
                bench.frame(index, picture(index))
                bench.spin(0.05)
                if index == 20:
                    bench.say("close the drawer")
            bench.spin(0.3)
    finally:
        bench.close()
        server.close()
    reasons = {gate.reason for gate in bench.gates}
    assert {"start", "open_loop", "prefetch", "new_instruction"} <= reasons
    assert any(gate.age_s > 0.0 and gate.decision == gate.INFER for gate in bench.gates)
    assert any(gate.clamped for gate in bench.gates)
    assert cli.main(["replay", str(bag)]) == 0, capsys.readouterr()
    assert f"identical: every decision and action of all {len(bench.gates)} steps" in capsys.readouterr().out
    assert cli.main(["replay", str(bag), "--set", "control.prefetch=0"]) == 2  # asks what nobody was asked then
    assert "no answer of the remote policy to the image at" in capsys.readouterr().err
    assert cli.main(["tune", str(bag)]) == 2
    assert "give a policy that runs here" in capsys.readouterr().err

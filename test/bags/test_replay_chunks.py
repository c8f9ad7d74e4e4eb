"""OpenVLA-OFT and UniVLA drive the simulated robot in chunks that are blended, and the recording replays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from recording import recording

pytest.importorskip("flashvla_ros.sim.world", exc_type=Exception, reason="EGL or Meta-World is missing")

from flashvla_ros.vla.random_checkpoint import config_of_size, write_random_checkpoint

# By hand alone: where a busy machine makes the recorder miss a step, what follows in chunks cannot be the same.
pytestmark = [
    pytest.mark.skipif(not os.environ.get("FLASHVLA_TEST_DRIVES"), reason="minutes long: FLASHVLA_TEST_DRIVES=1"),
    pytest.mark.timeout(600),
]

FLASHVLA = [sys.executable, "-m", "flashvla_ros"]
OFT = ["model.proprio=x,y,z,ax,ay,az,l_close,r_close"]
TWO = ["model.images=2", "camera.names=agentview,robot0_eye_in_hand"]
STEPS = 25  # three chunks and more, each blended with the next


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [("openvla_oft", [*OFT, "model.images=1"]), ("openvla_oft", [*OFT, *TWO]), ("univla", ["decode.mode=draft"])],
)
def test_a_drive_in_chunks_replays_bit_for_bit(architecture: str, parameters: list[str], tmp_path: Path) -> None:
    model, bag = tmp_path / "model", tmp_path / "bag"
    write_random_checkpoint(model, config_of_size("tiny"), architecture=architecture, action_size=4)
    options = ["--checkpoint", str(model), "--lock-step", "--episodes", "1"]
    common = ["model.unnorm_key=random_4d", "control.blend=temporal", "gate.replan_after=4"]
    options += [word for value in (*common, *parameters) for word in ("--set", value)]
    with recording(bag) as recorder:
        assert recorder.stdout.readline()  # it listens before there is anything to hear
        process = subprocess.Popen([*FLASHVLA, "bringup", *options], stdout=subprocess.PIPE, text=True)
        timer = threading.Timer(300, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            steps = (int(line.split(" step ")[1].split(",")[0]) for line in process.stdout if " step " in line)
            assert any(step >= STEPS for step in steps)
            process.send_signal(signal.SIGINT)
            said = process.stdout.read()
            process.wait()
        finally:
            timer.cancel()
            process.kill()
            process.stdout.close()
    assert "fault" not in said
    replay = subprocess.run([*FLASHVLA, "replay", str(bag)], capture_output=True, text=True, timeout=300, check=False)
    assert replay.returncode == 0, replay.stdout + replay.stderr
    assert "bit for bit" in replay.stdout

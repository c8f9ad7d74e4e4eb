"""Policies of LeRobot, in its own environment, behind our client.

``LEROBOT_PYTHON`` names the Python of an environment as scripts/lerobot_server.py describes it; else nothing runs.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashvla_ros.core.errors import RemoteError
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import PruningSettings, Settings
from flashvla_ros.core.types import Observation
from flashvla_ros.remote.policy import RemotePolicy

PYTHON = os.environ.get("LEROBOT_PYTHON", "")
ROOT = Path(__file__).parents[2]
MAKER = Path(__file__).with_name("lerobot_policies.py")
MEAN = [0.1, 0.2, 0.3, 0.4]  # of the actions that the policies were normalised by
PATIENCE_S = 280
pytestmark = [
    pytest.mark.skipif(not PYTHON, reason="LEROBOT_PYTHON names no environment with lerobot"),
    pytest.mark.timeout(900),
]
NAMES = ["x", "y", "z", "gripper"]


@pytest.fixture(scope="module", params=[("act", 6), ("smolvla", 10)], ids=["act", "smolvla"])
def served(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Address of a server, and how many rows its policy's chunks have."""
    kind, rows = request.param
    folder = tmp_path_factory.mktemp(kind)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    subprocess.run([PYTHON, MAKER, kind, folder], check=True, env=environment, timeout=PATIENCE_S)
    command = [PYTHON, ROOT / "scripts" / "lerobot_server.py", folder, "--port", "0", "--device", "cpu"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        line = next((line for line in server.stdout if line.startswith("serving")), "")
        address = re.search(r"ws://\S+", line)
        assert address, "the server ended"
        yield address[0], rows
    finally:
        server.terminate()
        server.wait(30)


def connect(uri: str, **values: Any) -> RemotePolicy:
    settings = {
        "model.remote": uri,
        "control.inference_timeout_s": 30.0,
        "control.max_image_age_s": 0.0,
        "camera.names": ["front"],
        "remote.images": ["observation.images.front"],
        "remote.image_size": 0,
        "remote.state": ["observation.state: x y z finger"],
        **{name.replace("__", "."): value for name, value in values.items()},
    }
    return RemotePolicy.connect(Settings().with_values(settings))


def observation(shade: int = 90, size: tuple[int, int] = (96, 128)) -> Observation:
    where = dict(zip(("x", "y", "z", "finger"), (0.1, -0.2, 0.3, 1.0), strict=True))
    picture = np.full((*size, 3), shade, dtype=np.uint8)
    return Observation({"front": picture}, "open the drawer", 1.0, joint_positions=where)


def ask(policy: RemotePolicy, seen: Observation) -> np.ndarray:
    return policy.infer(Request(seen, PruningSettings())).action


def test_a_policy_of_lerobot_answers_our_client_with_chunks_in_the_robots_units(served: tuple[str, int]) -> None:
    uri, rows = served
    policy = connect(uri)
    assert set(policy.metadata["lerobot"]["inputs"]) == {"observation.images.front", "observation.state"}
    action = ask(policy, observation())
    assert action.shape == (rows, len(NAMES))
    spread = np.abs(action - MEAN).max(axis=0)
    assert (spread < [0.1, 0.2, 0.3, 10.0]).all()  # the post-processor's mean and deviation
    if policy.metadata["lerobot"]["type"] == "act":  # SmolVLA's actions begin as noise
        assert np.array_equal(action, ask(policy, observation()))
        assert not np.array_equal(action, ask(policy, observation(200)))


def test_what_the_policy_does_not_read_is_refused_in_words(served: tuple[str, int]) -> None:
    with pytest.raises(RemoteError, match=r"the policy reads observation\.images\.front, and the message has"):
        connect(served[0], remote__images=["observation.images.top"])
    with pytest.raises(RemoteError, match=r"observation\.state has shape \[1\], and the policy reads \[4\]"):
        connect(served[0], remote__state=["observation.state: x"])

"""What the doctor says where the policy is a server's: nothing of any checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import write_checkpoint

from flashvla_ros.__main__ import main

pytest.importorskip("websockets", reason="the extra `remote` is not installed")
LIBERO = str(Path(__file__).parents[2] / "config" / "openpi_libero.yaml")


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Gives what the command returns and says; machine and ROS are passed over."""
    for name in ("check_machine", "check_ros"):
        monkeypatch.setattr(f"flashvla_ros.doctor.command.{name}", lambda *_: iter(()))

    def run(*arguments: str) -> tuple[int, str]:
        code = main(["doctor", "--settings", LIBERO, *arguments])
        output = capsys.readouterr()
        return code, output.out + output.err

    return run


def test_a_server_is_reached_and_no_checkpoint_is_examined(serve, doctor) -> None:
    server = serve()
    code, said = doctor("--set", f"model.remote={server.uri}")
    assert (code, said.splitlines()[-1]) == (0, "all is well")
    assert f"ok    remote        {server.uri} lets the node in" in said
    assert "checkpoint" not in said
    assert (server.connections, server.messages) == (1, [])


def test_a_server_that_is_not_there_or_serves_another_policy_is_told(serve, doctor) -> None:
    server = serve(metadata={"flashvla": {"names": ["x"]}})
    code, said = doctor("--set", f"model.remote={server.uri}")
    assert code == 1
    assert "FAIL  remote        action.names is ('x', 'y', 'z', 'rx', 'ry', 'rz', 'gripper'), but ws:" in said
    server.close()
    code, said = doctor("--set", f"model.remote={server.uri}", "--wait", "1")
    assert code == 1
    assert f"FAIL  remote        {server.uri}: " in said
    assert "→ start the server" in said
    assert "mapping" not in said


def test_what_the_node_would_refuse_at_once_is_told_with_the_remedy(doctor) -> None:
    code, said = doctor("--set", "camera.names=front")
    assert code == 1
    assert "FAIL  remote        camera.names has 1 cameras but remote.images 2 keys: give one key per camera" in said


def test_a_checkpoint_is_examined_all_the_same_where_one_is_given(doctor, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    code, said = doctor("--checkpoint", str(folder))
    assert code == 1  # it has another action
    assert f"ok    checkpoint    {folder}" in said
    assert "certificate" in said
    assert "remote" not in said


def test_there_is_nothing_to_explain_of_a_server(doctor) -> None:
    said = "flashvla-ros: --explain runs a checkpoint, but model.remote names a server: give --checkpoint\n"
    assert doctor("--explain") == (2, said)

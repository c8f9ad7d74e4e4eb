"""A policy behind a websocket: what it is told, what it answers, and every way in which it may not."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import make_observation
from policy_server import ScriptedServer, chunk, well
from websockets.sync.server import ServerConnection

from flashvla_ros.core.errors import ObservationError, RemoteError, SettingsError
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import PruningSettings, Settings
from flashvla_ros.remote import wire
from flashvla_ros.remote.endpoint import KEY_VARIABLE, Endpoint
from flashvla_ros.remote.loading import FROM_SETTINGS
from flashvla_ros.remote.policy import RemotePolicy

Serve = Callable[..., ScriptedServer]


def settings(uri: str, **values: Any) -> Settings:
    given = {name.replace("__", "."): value for name, value in values.items()}
    return Settings().with_values({"model.remote": uri, "control.inference_timeout_s": 0.3, **given})


def ask(policy: RemotePolicy, stamp_s: float = 1.0) -> np.ndarray:
    return policy.infer(Request(make_observation(stamp_s), PruningSettings())).action


def test_an_answer_is_an_inference_with_its_time_split_into_network_and_model(serve: Serve) -> None:
    answer = {"actions": chunk(0.02, 3).astype(np.float32), "server_timing": {"infer_ms": 0.001}}
    policy = RemotePolicy.connect(settings(serve(lambda *_: answer, good=0).uri, remote__scale=[0.1, 1.0, 1.0, 2.0]))
    run = policy.infer(Request(make_observation(), PruningSettings()))
    np.testing.assert_array_equal(run.action, answer["actions"].astype(np.float64))
    np.testing.assert_allclose(run.normalized[0], [0.2, 0.0, 0.0, 0.5], rtol=1e-6)
    assert run.kept is None
    assert run.timings_s["model"] == 1e-6
    assert run.timings_s["network"] > 0.0


def test_a_server_without_timing_leaves_everything_to_the_network(serve: Serve) -> None:
    policy = RemotePolicy.connect(settings(serve(lambda *_: {"actions": chunk()}, good=0).uri))
    assert policy.infer(Request(make_observation(), PruningSettings())).timings_s["model"] == 0.0


def test_no_more_rows_are_followed_than_asked_for(serve: Serve) -> None:
    server = serve(lambda *_: {"actions": chunk(steps=10)}, good=0)
    assert ask(RemotePolicy.connect(settings(server.uri, remote__rows=4))).shape == (4, 4)


def test_the_server_sees_its_own_names(serve: Serve) -> None:
    server = serve()
    given = {
        "camera__names": ["front", "wrist"],
        "remote__images": ["images.cam_high", "observation/wrist_image"],
        "remote__channels_first": True,
        "remote__image_size": 32,
        "remote__state": ["state: b a", "pose: x ax ay az"],
        "remote__prompt": "task",
    }
    policy = RemotePolicy.connect(settings(server.uri, **given))
    observation = make_observation()
    image = observation.images["image"]
    half = np.sqrt(0.5)
    seen = type(observation)(
        {"wrist": image, "front": image + 1},
        "stack",
        0.0,
        joint_positions={"a": 1.0, "b": 2.0},
        pose={"x": 3.0, "qx": half, "qy": 0.0, "qz": 0.0, "qw": half},
    )
    policy.infer(Request(seen, PruningSettings()))
    message = server.messages[-1]
    assert message["images"]["cam_high"].shape == (3, 32, 32)
    assert (message["images"]["cam_high"] == 101).all()
    assert (message["observation/wrist_image"] == 100).all()
    np.testing.assert_array_equal(message["state"], [2.0, 1.0])
    np.testing.assert_allclose(message["pose"], [3.0, np.pi / 2, 0.0, 0.0])
    assert message["task"] == "stack"
    with pytest.raises(ObservationError, match=r"remote.state needs b, a"):
        policy.infer(Request(type(observation)(seen.images, "stack", 0.0), PruningSettings()))


# What an address may be.


@pytest.mark.parametrize(
    "uri, words",
    [
        ("ws://192.168.1.5:8000", r"needs TLS \(wss://\) and an API key"),
        ("wss://gpu.example.com:443", "needs an API key"),
        ("http://localhost:1", "must be ws://HOST:PORT"),
        ("ws://localhost", "must be ws://HOST:PORT"),
        ("ws://localhost:x", "must be ws://HOST:PORT"),
        ("ws://me:secret@localhost:1", "must be ws://HOST:PORT"),
        ("ws://[::1:8000", "must be ws://HOST:PORT"),
        ("ws://[zz]:80", "must be ws://HOST:PORT"),
    ],
)
def test_an_address_off_this_machine_needs_tls_and_a_key(uri: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(SettingsError, match=words) as caught:
        FROM_SETTINGS.precheck(settings(uri))
    assert "\n" not in str(caught.value)


def test_the_key_comes_from_a_private_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "from-the-environment")
    given = settings("wss://gpu.example.com:443")
    endpoint = Endpoint.of(given.model.remote, given.remote)
    assert endpoint.api_key == "from-the-environment"
    assert "from-the-environment" not in repr(endpoint)
    file = tmp_path / "key"
    file.write_text("from-the-file\n")
    file.chmod(0o600)
    given = given.with_values({"remote.api_key_file": str(file)})
    assert Endpoint.of(given.model.remote, given.remote).api_key == "from-the-file"
    file.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        Endpoint.of(given.model.remote, given.remote)


def test_cameras_and_keys_must_be_as_many() -> None:
    with pytest.raises(SettingsError, match="give one key per camera"):
        FROM_SETTINGS.precheck(settings("ws://localhost:1", camera__names=["a", "b"]))


def test_one_policy_only() -> None:
    with pytest.raises(SettingsError, match="both name a policy"):
        settings("ws://localhost:1", model__checkpoint="folder")


# What is checked at connect.


def connecting(uri: str, **values: Any) -> str:
    with pytest.raises((RemoteError, SettingsError)) as caught:
        RemotePolicy.connect(settings(uri, **values))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_server_of_another_action_is_refused(serve: Serve) -> None:
    assert "declares 4 dimensions" in connecting(serve(lambda *_: {"actions": np.zeros((5, 7))}, good=0).uri)


def metadata_of(given: Settings) -> dict[str, Any]:
    action = given.action
    return {"names": list(action.names), "kinds": list(action.kinds), "dt_s": action.dt_s}


@pytest.mark.parametrize("dt_s", [0.2, None, np.ones((2, 2))])
def test_our_own_servers_metadata_must_be_as_the_parameters_say(serve: Serve, dt_s: object) -> None:
    own = {**metadata_of(Settings()), "dt_s": dt_s}
    assert "action.dt_s is 0.1" in connecting(serve(metadata={"flashvla": own}).uri)


@pytest.mark.parametrize("metadata", [[1], 3, "text"])
def test_metadata_must_be_a_map(serve: Serve, metadata: object) -> None:
    assert "metadata" in connecting(serve(metadata=metadata).uri)


def test_a_server_that_says_nothing_of_itself_will_do(serve: Serve) -> None:
    assert ask(RemotePolicy.connect(settings(serve().uri))).shape == (1, 4)


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert f"ws://127.0.0.1:{port}: " in connecting(f"ws://127.0.0.1:{port}")


def test_another_protocol_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            connection, _ = server.accept()
            connection.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")
            connection.close()

        threading.Thread(target=greet, daemon=True).start()
        assert "does not speak openpi's protocol" in connecting(f"ws://127.0.0.1:{server.getsockname()[1]}")


def test_a_refused_key_is_named(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def guard(connection: ServerConnection, request: Any) -> Any:
        right = request.headers.get("Authorization") == "Api-Key right"
        return None if right else connection.respond(HTTPStatus.UNAUTHORIZED, "no\n")

    uri = serve(process_request=guard).uri
    monkeypatch.setenv(KEY_VARIABLE, "wrong")
    assert "refuses the API key (HTTP status 401)" in connecting(uri)
    monkeypatch.setenv(KEY_VARIABLE, "right")
    RemotePolicy.connect(settings(uri))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(serve: Serve, status: int) -> None:
    """An address off this machine that the rules would refuse must not be reached by way of one that they allow."""
    other = serve()

    def elsewhere(connection: ServerConnection, _request: Any) -> Any:
        response = connection.respond(HTTPStatus(status), "")
        response.headers["Location"] = other.uri
        response.headers["Location"] = other.uri  # said twice, as a broken proxy may
        return response

    uri = serve(process_request=elsewhere).uri
    said = connecting(uri)
    assert (
        said == f"{uri}: it points to {other.uri} {other.uri}, no redirect is followed: name the server in model.remote"
    )
    assert other.connections == 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificate")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    command += " -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder


def test_a_certificate_is_checked(serve: Serve, certificate: Path) -> None:
    import ssl

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    uri = serve(ssl=tls).uri
    assert "CERTIFICATE_VERIFY_FAILED" in connecting(uri)
    policy = RemotePolicy.connect(settings(uri, remote__ca_file=str(certificate / "cert.pem")))
    assert ask(policy).shape == (1, 4)
    assert "certificate" in connecting(uri, remote__ca_file=str(certificate / "key.pem"))


# After a fault.


def failing(policy: RemotePolicy) -> str:
    with pytest.raises(RemoteError) as caught:
        ask(policy)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_late_answer_is_never_taken_for_the_next_one(serve: Serve) -> None:
    def late(connection: ServerConnection, message: dict, number: int) -> Any:
        if number == 2:
            time.sleep(0.5)
        return {"actions": chunk(number / 1000)}

    server = serve(late, good=0)
    policy = RemotePolicy.connect(settings(server.uri, control__inference_timeout_s=0.1))
    assert "no answer" in failing(policy)
    time.sleep(0.15)  # the back-off
    assert ask(policy)[0, 0] == 0.003
    assert server.connections == 2


def test_an_answer_that_nobody_asked_for_ends_the_connection(serve: Serve) -> None:
    def twice(connection: ServerConnection, message: dict, number: int) -> Any:
        connection.send(wire.pack({"actions": chunk(number / 1000)}))
        return {"actions": chunk(1.0)} if number == 2 else None

    server = serve(twice, good=0)
    policy = RemotePolicy.connect(settings(server.uri))
    assert ask(policy)[0, 0] == 0.002
    time.sleep(0.05)
    assert "nobody had asked for" in failing(policy)
    time.sleep(0.15)  # the back-off
    assert ask(policy)[0, 0] == 0.003  # over another connection
    assert server.connections == 2


def test_the_answer_to_another_observation_is_refused_where_the_server_returns_stamps(serve: Serve) -> None:
    own = {**metadata_of(Settings()), "returns": "stamp_s"}
    behind: list[ServerConnection] = []  # is one answer behind, and stays so

    def stamped(connection: ServerConnection, message: dict, number: int) -> Any:
        if number == 3:
            behind.append(connection)
        return {**well(connection, message, number), "stamp_s": message["stamp_s"] - (connection in behind)}

    server = serve(stamped, 0, {"flashvla": own})
    policy = RemotePolicy.connect(settings(server.uri))
    ask(policy)
    assert "answered another observation, of stamp 0.0" in failing(policy)
    time.sleep(0.15)  # the back-off
    ask(policy)
    assert server.connections == 2


@pytest.mark.parametrize("stamp", [None, "1", np.ones((2, 2)), [np.ones((2, 2))]])
def test_a_stamp_of_another_form_is_refused_in_one_line(serve: Serve, stamp: object) -> None:
    own = {**metadata_of(Settings()), "returns": "stamp_s"}
    server = serve(lambda *given: {**well(*given), "stamp_s": stamp}, 0, {"flashvla": own})
    assert "answered another observation" in connecting(server.uri)


@pytest.mark.parametrize(
    "answer",
    ["Traceback\nKeyError: 'image'", b"\xc1", {"actions": chunk(np.nan)}, {"actions": np.zeros((1, 7))}, [1]],
    ids=["traceback", "no msgpack", "NaN", "shape", "no map"],
)
def test_an_answer_that_cannot_be_used_ends_the_connection_and_is_asked_for_less_and_less_often(
    serve: Serve, answer: object
) -> None:
    server = serve(lambda *_: answer, good=1)
    policy = RemotePolicy.connect(settings(server.uri))
    started_s = time.monotonic()
    while time.monotonic() < started_s + 0.5:
        failing(policy)
        time.sleep(0.005)
    elapsed_s = time.monotonic() - started_s
    bad = len(server.messages) - 1
    assert 2 <= bad <= 2 + np.log2(1 + elapsed_s / 0.1)  # pauses of 0.1, 0.2, 0.4 s, …
    assert server.connections == bad  # each over another


def test_a_failing_server_is_asked_less_and_less_often(serve: Serve) -> None:
    server = serve(lambda *_: "Traceback:\n  File x\nValueError: no such key", good=1)
    policy = RemotePolicy.connect(settings(server.uri))
    assert "failed: ValueError: no such key" in failing(policy)
    server.close()
    started_s, tried = time.monotonic(), 0
    while time.monotonic() < started_s + 0.5:
        tried += "tried again in" not in failing(policy)
        time.sleep(0.001)
    elapsed_s = time.monotonic() - started_s
    assert 1 <= tried <= 2 + np.log2(1 + elapsed_s / 0.1)  # pauses of 0.1, 0.2, 0.4 s, …


def test_another_policy_at_the_same_address_is_refused(serve: Serve) -> None:
    first = serve(metadata={"policy": "a"}, good=1, then=lambda connection, *_: connection.close())
    policy = RemotePolicy.connect(settings(first.uri))
    failing(policy)
    first.close()
    time.sleep(0.15)
    serve(metadata={"policy": "b"}, port=first.port)
    assert "serves another policy than before" in failing(policy)


def test_the_deadline_cannot_rise_while_connected(serve: Serve) -> None:
    given = settings(serve().uri, control__inference_timeout_s=2.0)
    loaded = FROM_SETTINGS.load(given)
    loaded.check(given)
    loaded.check(given.with_values({"control.inference_timeout_s": 0.2}))
    with pytest.raises(SettingsError, match=r"cannot rise above 2 s"):
        loaded.check(given.with_values({"control.inference_timeout_s": 2.1}))


def test_no_thread_and_no_socket_outlive_a_policy(serve: Serve) -> None:
    uri = serve().uri
    RemotePolicy.connect(settings(uri))
    files, threads = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    for _ in range(3):
        RemotePolicy.connect(settings(uri))

    def left() -> bool:
        return threading.active_count() > threads + 3 or len(list(Path("/proc/self/fd").iterdir())) > files + 3

    end_s = time.monotonic() + 20.0
    while left() and time.monotonic() < end_s:  # the server's own handlers end by themselves, on a busy machine late
        time.sleep(0.05)
    assert not left()

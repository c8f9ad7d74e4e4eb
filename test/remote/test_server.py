"""Our policy, served: the same actions as in process, each client with its own state, and limits that hold."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import threading
import time
import tracemalloc
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import websockets
from fakes import SPEC, ScriptedPolicy, make_observation
from websockets.sync.client import ClientConnection, connect

from flashvla_ros.__main__ import main
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.errors import RemoteError
from flashvla_ros.core.policy import Policy, Request
from flashvla_ros.core.settings import PruningSettings, Settings
from flashvla_ros.core.types import Inference
from flashvla_ros.remote import wire
from flashvla_ros.remote.mapping import ObservationMap
from flashvla_ros.remote.policy import RemotePolicy
from flashvla_ros.remote.server import PolicyServer
from flashvla_ros.remote.service import ServerOptions
from flashvla_ros.vla.loading import LoadedPolicy

SETTINGS = Settings().with_values({"gate.max_reuse": 1, "gate.fresh_between": 1, "gate.delta": 0.0})


class Served:
    """A server on a thread of its own."""

    def __init__(self, policy: Policy, settings: Settings = SETTINGS, **options: Any) -> None:
        self.server = PolicyServer(LoadedPolicy(policy), settings, ServerOptions(port=0, **options))
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.listening = asyncio.run_coroutine_threadsafe(self.server.start(), self.loop).result(10)
        self.address = f"127.0.0.1:{self.listening.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        async def end() -> None:
            self.listening.close()
            await self.listening.wait_closed()

        asyncio.run_coroutine_threadsafe(end(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def served() -> Iterator[Callable[..., Served]]:
    started: list[Served] = []

    def start(policy: Policy | None = None, *arguments: Any, **options: Any) -> Served:
        started.append(Served(policy or ScriptedPolicy(), *arguments, **options))
        return started[-1]

    yield start
    for one in started:
        one.close()


def by_picture(request: Request, scripted: Inference) -> Inference:
    """An action that says which picture and which previous result it answers, with all its bits."""
    level = float(next(iter(request.observation.images.values()))[0, 0, 0])
    before = 0.0 if request.previous is None else request.previous.normalized[0, 1]
    normalized = np.array([[np.sin(level), np.sin(before + level) / 3, 0.1, 1.0]])
    return Inference(normalized / 7, normalized, scripted.tokens, scripted.kept, 64)


@contextlib.contextmanager
def client(address: str, path: str = "/") -> Iterator[Callable[[int, float], dict]]:
    """Openpi's client in four lines; test/remote/README.md says how its own was tried."""
    with connect(f"ws://{address}{path}", compression=None, max_size=None) as connection:
        assert "flashvla" in wire.unpack(connection.recv())

        def infer(level: int, stamp_s: float) -> dict:
            image = np.full((8, 8, 3), level, np.uint8)
            return say(connection, {"observation/image": image, "prompt": "open the drawer", "stamp_s": stamp_s})

        yield infer


def say(connection: ClientConnection, message: Any) -> Any:
    connection.send(message if isinstance(message, bytes) else wire.pack(message))
    answer = connection.recv(timeout=20)
    return answer if isinstance(answer, str) else wire.unpack(answer)


def in_process(settings: Settings, levels: list[int]) -> list[np.ndarray]:
    stepper = Stepper(ScriptedPolicy(answer=by_picture), SPEC)
    return [
        stepper.step(make_observation(0.1 * (n + 1), level=level, size=(8, 8)), settings).command
        for n, level in enumerate(levels)
    ]


@pytest.mark.parametrize("path", ["/", "/gated"])
def test_ten_clients_at_once_each_get_what_they_would_get_alone(served: Callable[..., Served], path: str) -> None:
    address = served(ScriptedPolicy(answer=by_picture)).address
    settings = SETTINGS if path == "/gated" else SETTINGS.with_values({"gate.mode": "off"})
    failures: list[Any] = []

    def drive(number: int) -> None:
        levels = [100 + number, 100 + number, 101 + number, 101 + number, 101 + number, 102 + number]
        with client(address, path) as infer:
            answers = [infer(level, 0.1 * (n + 1)) for n, level in enumerate(levels)]
        alone = in_process(settings, levels)
        if [answer["actions"].tobytes() for answer in answers] != [action.tobytes() for action in alone]:
            failures.append((number, answers, alone))
        if any(answer["gate"]["reused"] for answer in answers) is not (path == "/gated"):
            failures.append((number, [answer["gate"] for answer in answers]))

    threads = [threading.Thread(target=drive, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


@pytest.mark.parametrize("values", [{}, {"gate.calibration": "online"}, {"control.prefetch": 1}])
def test_every_question_at_the_root_runs_the_model_on_its_own_picture(
    served: Callable[..., Served], values: dict[str, Any]
) -> None:
    def chunk(request: Request, scripted: Inference) -> Inference:
        return dataclasses.replace(scripted, action=np.tile(by_picture(request, scripted).action, (5, 1)))

    policy = ScriptedPolicy(actions=[[[0.5, 0.0, 0.0, 1.0]] * 5], answer=chunk)
    levels, settings = [100, 150, 200, 250], SETTINGS.with_values(values)
    stamps = [0.1, 0.2, 0.45, 0.5]
    with client(served(policy, settings).address) as infer:
        answers = [infer(level, stamp_s) for level, stamp_s in zip(levels, stamps, strict=True)]
    assert [answer["gate"]["reason"] for answer in answers] == ["mode_off"] * 4
    for level, answer in zip(levels, answers, strict=True):
        np.testing.assert_array_equal(answer["actions"][:, 0], np.full(5, np.sin(level) / 7))


def test_no_client_is_starved(served: Callable[..., Served]) -> None:
    """Four greedy clients and a fifth: between its question and its answer each other one is answered once at most."""
    address = served(ScriptedPolicy(before=lambda _: time.sleep(0.005))).address
    order: list[int] = []

    def drive(number: int) -> None:
        with client(address) as infer:
            for n in range(12):
                infer(100, float(n))
                order.append(number)

    threads = [threading.Thread(target=drive, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(order) == 60
    middle = order[10:40]
    assert all(set(middle[n : n + 15]) == set(range(5)) for n in range(15))


def test_our_own_client_drives_our_own_server(served: Callable[..., Served]) -> None:
    address = served(ScriptedPolicy(answer=by_picture)).address
    values = {"model.remote": f"ws://{address}/gated", "remote.image_size": 0, "control.inference_timeout_s": 2.0}
    policy = RemotePolicy.connect(SETTINGS.with_values(values))
    run = policy.infer(Request(make_observation(5.0, level=104, size=(8, 8)), PruningSettings()))
    assert run.action.shape == (1, 4)
    assert run.timings_s["model"] > 0.0


@pytest.mark.parametrize(
    "message, words",
    [
        ({"prompt": "go"}, "no 'observation/image'"),
        ({"observation/image": np.zeros((2, 2), np.uint8), "prompt": "go"}, "uint8 picture"),
        ({"observation/image": np.zeros((2, 2, 3)), "prompt": "go"}, "uint8 picture"),
        ({"observation/image": np.zeros((3, 0, 2), np.uint8), "prompt": "go"}, "uint8 picture"),
        ({"observation/image": np.zeros((2, 2, 3), np.uint8), "prompt": " "}, "instruction in words"),
        ({"observation/image": np.zeros((2, 2, 3), np.uint8), "prompt": "go", "stamp_s": np.nan}, "finite number"),
        ([1], "a map"),
        (b"\xc1", "no message"),
    ],
)
def test_a_bad_observation_is_answered_in_one_line(served: Callable[..., Served], message: Any, words: str) -> None:
    with connect(f"ws://{served().address}", compression=None) as connection:
        connection.recv()
        answer = say(connection, message)
        assert isinstance(answer, str)
        assert words in answer
        assert "\n" not in answer
        with pytest.raises(websockets.ConnectionClosed):
            connection.recv(timeout=10)


@pytest.mark.parametrize("state", [[[1.0], [1.0, 2.0]], [1.0, None], "12", {"a": 1.0}, [1.0], np.eye(2), [np.nan, 1.0]])
def test_a_state_that_is_not_as_many_numbers_is_named(served: Callable[..., Served], state: Any) -> None:
    address = served(None, SETTINGS.with_values({"remote.state": ["state: a b"]})).address
    message = {"observation/image": np.zeros((2, 2, 3), np.uint8), "prompt": "go", "state": state}
    with connect(f"ws://{address}", compression=None) as connection:
        connection.recv()
        assert say(connection, message) == "RemoteError: state must be 2 finite numbers: a b"


def test_words_for_a_state_cost_no_memory() -> None:
    """NumPy would give each of them the room of the longest."""
    settings = SETTINGS.with_values({"remote.state": ["state: a b"]})
    message = {"observation/image": np.zeros((2, 2, 3), np.uint8), "prompt": "go", "state": ["x"] * 99 + ["x" * 10**5]}
    tracemalloc.start()
    with pytest.raises(RemoteError, match="2 finite numbers"):
        ObservationMap(settings.remote, ("image",)).from_wire(message, 0.0, 0.0)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


def test_a_failing_model_harms_its_client_alone(served: Callable[..., Served]) -> None:
    def fail(call: int) -> None:
        if call == 1:
            raise ZeroDivisionError

    address = served(ScriptedPolicy(before=fail)).address
    with client(address) as other, client(address) as infer:
        other(1, 0.0)
        assert infer(1, 0.0) == "the server failed; its log says why"
        assert "actions" in other(1, 1.0)


def test_a_message_beyond_the_limit_ends_its_connection(served: Callable[..., Served]) -> None:
    with connect(f"ws://{served().address}", compression=None) as connection:
        connection.recv()
        with contextlib.suppress(websockets.ConnectionClosed):
            connection.send(bytes(wire.MOST_BYTES + 1))
        with pytest.raises(websockets.ConnectionClosed) as caught:
            connection.recv(timeout=10)
        assert caught.value.rcvd is None or caught.value.rcvd.code == 1009


def test_one_client_too_many_is_sent_away_until_another_leaves(served: Callable[..., Served]) -> None:
    address = served(clients=1).address
    with client(address), pytest.raises(websockets.InvalidStatus) as caught, client(address):
        pass
    assert caught.value.response.status_code == 503
    for _ in range(100):
        with contextlib.suppress(websockets.InvalidStatus), client(address) as infer:
            assert "actions" in infer(1, 0.0)
            return
        time.sleep(0.02)
    raise AssertionError("the place of the one who left was never free")


def test_a_client_is_held_to_its_rate(served: Callable[..., Served]) -> None:
    with client(served(rate_hz=20.0).address) as infer:
        started_s = time.monotonic()
        for n in range(5):
            infer(1, float(n))
        assert time.monotonic() - started_s >= 4 / 20.0


def get(address: str, path: str, key: str = "") -> tuple[int, str]:
    request = urllib.request.Request(f"http://{address}{path}", headers={"Authorization": f"Api-Key {key}"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_health_is_open_and_metadata_asks_for_the_key(served: Callable[..., Served]) -> None:
    address = served(api_key="secret").address
    assert get(address, "/healthz") == (200, "OK\n")
    assert get(address, "/metadata")[0] == 401
    status, text = get(address, "/metadata", "secret")
    assert (status, json.loads(text)["flashvla"]["names"]) == (200, ["x", "y", "z", "gripper"])
    assert get(address, "/else", "secret")[0] == 404
    with pytest.raises(websockets.InvalidStatus), connect(f"ws://{address}"):
        pass


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--host", "192.0.2.1"], "needs --certificate and an API key"),
        (["--host", "::"], "needs --certificate and an API key"),
        (["--clients", "0"], "--clients and --rate are above 0"),
        (["--rate", "nan"], "--clients and --rate are above 0"),
        (["--replicas", "-1"], "--replicas is 0 or more"),
        (["--ray", "auto", "--checkpoint", "missing"], "give --replicas, or leave --ray out"),
        (["--port", "70000"], "--port is 0 to 65535"),
        (["--certificate", "missing.pem"], "holds no certificate"),
        (["--set", "model.remote=ws://localhost:1"], "served already"),
        (["--checkpoint", "missing"], "missing"),
        (["--checkpoint", "missing", "--set", "camera.names=a,b"], "give one key per camera"),
        (["--checkpoint", "missing", "--set", "remote.images=a,b"], "give one key per camera"),
    ],
)
def test_what_the_command_refuses(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLASHVLA_API_KEY", raising=False)
    assert main(["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1

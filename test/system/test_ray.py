"""Ray for real: one cluster on this machine, and everything that may be spread over it gives what one process gives."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import write_checkpoint

from flashvla_ros import __main__ as cli
from flashvla_ros.cli.fanout import fan_out
from flashvla_ros.cli.overrides import parse_overrides
from flashvla_ros.core.errors import FlashVLAError, SettingsError, SimulationError

sys.path.append(str(Path(__file__).parents[1] / "bags"))

from bag_factory import drive, write_bag

pytestmark = pytest.mark.timeout(600)  # each of Ray's processes imports torch or MuJoCo, slowly on a busy machine


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of one machine with two places to work."""
    from ray.cluster_utils import Cluster  # seconds, which every process that collects this file would spend

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_worker_niceness", "0")  # Ray's own 15 lets its workers starve beside other work
        environment.setenv("RAY_memory_monitor_refresh_ms", "0")  # it kills workers where other tests fill the memory
        head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 * 2**20}
        nodes = Cluster(initialize_head=True, head_node_args=head)
        yield nodes.address
        nodes.shutdown()


def lengths(word: str) -> int:
    return len(word)


def test_the_results_come_as_they_are_done_and_errors_as_they_were_raised(cluster: str) -> None:
    work = [[f"gate.max_reuse={number}"] for number in range(1, 7)]
    assert dict(fan_out(parse_overrides, work, ray=cluster)) == {n: {"gate.max_reuse": n + 1} for n in range(6)}
    with pytest.raises(SettingsError, match=r"gate\.delta must be from 0 to 1"):
        list(fan_out(parse_overrides, [*work, ["gate.delta=2"]], ray=cluster))


def test_what_the_machines_of_the_cluster_lack_is_named(cluster: str) -> None:
    with pytest.raises(FlashVLAError, match=f"a task failed on the Ray cluster {cluster}: .*test_ray"):
        list(fan_out(lengths, ["three"], ray=cluster))  # they have the package, and not this file


def test_a_cluster_is_started_where_there_is_none() -> None:
    import ray

    assert list(fan_out(parse_overrides, [["gate.delta=0.5"]], ray="local")) == [(0, {"gate.delta": 0.5})]
    assert not ray.is_initialized()


def test_a_cluster_that_is_not_there_is_named() -> None:
    with pytest.raises(FlashVLAError, match="no Ray cluster answers at 127.0.0.1:1: Connection refused"):
        list(fan_out(parse_overrides, [["gate.delta=0.5"]], ray="127.0.0.1:1"))


def test_eval_plays_the_same_episodes(cluster: str, tmp_path: Path) -> None:
    try:
        import flashvla_ros.sim.world  # noqa: F401
    except SimulationError as error:
        pytest.skip(str(error))
    rows = []
    for name, how in (("here", []), ("ray", ["--ray", cluster])):
        file = tmp_path / f"{name}.json"
        command = ["eval", "--tasks", "drawer-close", "--modes", "guarded", "--episodes", "1", "--json", str(file)]
        assert cli.main([*command, *how]) == 0
        rows.append([(row["steps_median"], row["reasons"]) for row in json.loads(file.read_text())["rows"]])
    assert rows[0] == rows[1]
    assert rows[0][0][0] > 0


def test_tune_gives_the_same_table(cluster: str, tmp_path: Path) -> None:
    bags = [str(write_bag(tmp_path / name, drive(count))) for name, count in (("first", 12), ("second", 8))]
    checkpoint = f"model.checkpoint={write_checkpoint(tmp_path / 'checkpoint')}"
    rows = []
    for name, how in (("here", []), ("ray", ["--ray", cluster])):
        file = tmp_path / f"{name}.json"
        files = ["--json", str(file), "--html", str(tmp_path / "t.html"), "--yaml", str(tmp_path / "t.yaml")]
        command = ["tune", *bags, "--set", checkpoint, "--delta", "0,0.5", "--max-error", "2", *files]
        assert cli.main([*command, *how]) == 0
        rows.append(json.loads(file.read_text())["rows"])
    assert rows[0] == rows[1]
    assert {row["delta"] for row in rows[0]} == {0.0, 0.5}

"""The safety case: its hazards have tests that exist, and the security policy has what the nodes open."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashvla_ros.nodes import interfaces
from flashvla_ros.nodes.interfaces import UNGUARDED

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guard.md").read_text(encoding="utf-8")
HAZARDS = re.findall(
    r"^\| (.+) \| ([SM]) \| (.+) \| (.+) \| (.+) \| (.+) \| `([\w/]+\.py)::(test_\w+)` \|$", PAGE, re.MULTILINE
)
TRIALS, REPEATED = (ROOT / "benchmarks" / "results" / f"{name}.json" for name in ("guard_trials", "hazards"))
INJECTED = {
    "the policy is killed (SIGKILL)": ["SIGKILL"],
    "the policy is suspended (SIGSTOP)": ["SIGSTOP and SIGCONT"],
    "the policy's machine is drowned out by other processes": ["all cores busy at higher priority"],
    "the policy has no memory left": ["out of memory"],
    "the model hangs": ["model hangs"],
    "the policy's action is not finite": ["NaN in the policy", "NaN command"],
    "another process publishes commands beside the policy": ["second publisher"],
    "the policy's writer is gone, its process lives": ["writer gone"],
    "an emergency stop is missed by the policy": ["emergency stop in every state"],
}
GUARDED = ("command", "gripper_command")


def test_every_hazard_has_a_test_that_exists():
    assert len(HAZARDS) >= 25
    assert len(HAZARDS) == len(re.findall(r"^\| ", PAGE, re.MULTILINE)) - 1
    for *_, file, name in HAZARDS:
        assert f"def {name}(" in (ROOT / "test" / file).read_text(encoding="utf-8"), f"{file}::{name}"


def seen(kinds: list[str]) -> Iterator[str]:
    """How often the stop came in time, and by how much it was late at most."""
    rows = [row for row in json.loads(TRIALS.read_text(encoding="utf-8"))["rows"] if row["kind"] in kinds]
    assert len(rows) == 2 * len(kinds)  # twists and joints
    assert not any(row["moved_after"] for row in rows)
    yield f"{sum(row['in_time'] for row in rows)} of {sum(row['due'] for row in rows)}"
    yield f"{max(0.0, *(row['late_max_s'] for row in rows)) * 1e3:.0f} ms"


def test_what_was_seen_of_a_hazard_is_what_the_trials_have_kept():
    repeated = {row["test"]: row for row in json.loads(REPEATED.read_text(encoding="utf-8"))["rows"]}
    for hazard, _, _, _, _, cell, file, name in HAZARDS:
        row = repeated[f"{file}::{name}"]
        passed = f"test: {row['passed']} of {row['trials']}"
        assert cell == (", ".join(seen(INJECTED[hazard])) if hazard in INJECTED else passed), hazard


@pytest.fixture(scope="module")
def profiles():
    tree = ElementTree.parse(ROOT / "config" / "sros2" / "policies.xml")  # noqa: S314  # our own file
    return {profile.get("node"): profile for profile in tree.iter("profile")}


def allowed(profile, what: str, how: str) -> set[str]:
    return {item.text for group in profile.iter(what) if group.get(how) == "ALLOW" for item in group}


def test_the_policy_node_may_do_what_it_does_and_no_more(profiles):
    heard = {
        *(row.name for row in interfaces.INPUTS),
        *("image/compressed", "guard/status", "robot_description", "/clock", "/parameter_events"),
    }
    said = {row.name for row in interfaces.OUTPUTS}
    said = {name + UNGUARDED if name in GUARDED else name for name in said}
    assert allowed(profiles["flashvla"], "topics", "subscribe") == heard
    published = allowed(profiles["flashvla"], "topics", "publish")
    assert published == said | {"~/transition_event", "/rosout", "/parameter_events"}
    assert {"~/reset", "~/change_state", "~/set_parameters"} <= allowed(profiles["flashvla"], "services", "reply")


def test_only_the_guard_may_command_the_robot(profiles):
    published = {node: allowed(profile, "topics", "publish") for node, profile in profiles.items()}
    assert [node for node, names in published.items() if set(GUARDED) & names] == ["guard"]
    assert {name + UNGUARDED for name in GUARDED} <= allowed(profiles["guard"], "topics", "subscribe")
    assert "emergency_stop" in allowed(profiles["guard"], "topics", "subscribe")

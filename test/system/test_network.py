"""What ``flashvla-ros bringup`` makes of the network: DDS hears nothing that does not come from this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from flashvla_ros.bringup.command import profile_variable
from flashvla_ros.core.paths import share_path

NODE = "from flashvla_ros.nodes.policy_node import main; main([])"
KEPT = "from flashvla_ros.bringup.command import keep_to_this_machine; keep_to_this_machine(); " + NODE
PROFILES = ("fastdds.xml", "fastdds_local.xml")
NAMESPACE = {"dds": "http://www.eprosima.com"}


def udp_addresses(pid: int) -> list[tuple[str, int]]:
    """Address and port of every UDP socket of a process."""
    handles = {str(handle.readlink()) for handle in Path(f"/proc/{pid}/fd").iterdir() if handle.is_symlink()}
    found = []
    for line in Path("/proc/net/udp").read_text(encoding="utf-8").splitlines()[1:]:
        fields = line.split()
        if f"socket:[{fields[9]}]" in handles:
            address, port = fields[1].split(":")
            found.append((socket.inet_ntoa(bytes.fromhex(address)[::-1]), int(port, 16)))
    return found


def listening(program: str, environment: dict[str, str]) -> set[str]:
    """Addresses at which a process started with `program` listens on its domain's ports."""
    first = 7400 + 250 * int(os.environ["ROS_DOMAIN_ID"])
    process = subprocess.Popen([sys.executable, "-c", program], env=environment)
    try:
        end_s = time.monotonic() + 100
        while time.monotonic() < end_s:
            time.sleep(0.2)
            addresses = {address for address, port in udp_addresses(process.pid) if first <= port < first + 250}
            if addresses:
                return addresses
        raise AssertionError("the node opened no port of its domain")
    finally:
        process.terminate()
        process.wait()


def test_the_demo_listens_on_loopback_alone():
    environment = {key: value for key, value in os.environ.items() if key != profile_variable()}
    assert listening(KEPT, environment) == {"127.0.0.1"}


def test_the_check_sees_a_node_that_listens_everywhere():
    environment = {key: value for key, value in os.environ.items() if key != profile_variable()}
    assert listening(NODE, environment) == {"0.0.0.0"}  # noqa: S104


@pytest.mark.parametrize("profile", PROFILES)
def test_the_profiles_hold_an_image_of_a_megapixel_and_more(profile):
    tree = ElementTree.parse(share_path("config", profile))  # noqa: S314  # our own file
    sizes = [int(size.text) for size in tree.iterfind(".//dds:segment_size", NAMESPACE)]
    assert sizes == [16 * 2**20]
    assert (profile == "fastdds_local.xml") == bool(tree.findall(".//dds:interfaceWhiteList", NAMESPACE))

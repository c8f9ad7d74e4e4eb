"""Start the policy node with the simulated robot, or with the camera of a real one.

    ros2 launch flashvla_ros bringup.launch.py
    ros2 launch flashvla_ros bringup.launch.py task:=drawer-close episodes:=3
    ros2 launch flashvla_ros bringup.launch.py camera:=/camera/image_raw checkpoint:=/models/openvla-7b \
        instruction:="pick up the red block" params:=/robots/arm.yaml remap:="command:=/servo_node/delta_twist_cmds"

The processes are those of ``flashvla-ros bringup``; both come from ``flashvla_ros.bringup.processes``.
"""

from __future__ import annotations

import dataclasses
import os
import sys

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, OpaqueFunction, RegisterEventHandler
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from flashvla_ros.bringup.processes import Bringup, Process, refuse_unknown
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.paths import share_path
from flashvla_ros.nodes.process import PARENT_VARIABLE

ARGUMENTS = {
    "robot": "which one is simulated: demo, or libero",
    "task": "its task, such as drawer-open, or libero_object/0",
    "instruction": "what the robot is told, in place of the task's own words",
    "episodes": "number of episodes; 0: until Ctrl-C",
    "seed": "seed of the first episode's scene",
    "lock_step": "true: the robot waits for each command, and runs repeat exactly",
    "camera": "image topic of a real robot, or name:=topic for each of several; nothing is simulated then",
    "checkpoint": "folder of an OpenVLA checkpoint; empty: the demo policy",
    "policy": "address ws://HOST:PORT of a policy server, in place of a checkpoint",
    "params": "the same as params_file, which comes first where both are given",
    "remap": "topics under other names, such as command:=/servo_node/delta_twist_cmds",
    "guard": "false: commands go to the robot directly, and nobody stops it where the policy cannot",
    "guard_params": "parameter file with the guard's limits",
    "namespace": "namespace of all nodes and topics, such as left for one of two arms",
    "use_sim_time": "true: the policy node takes its time from /clock",
    "autostart": "false: the policy node waits for configure and activate",
    "log_level": "least severity that is logged: debug, info, warn, error",
}
DEFAULTS = {field.name: str(field.default) for field in dataclasses.fields(Bringup) if field.name in ARGUMENTS}
OWN_ARGUMENTS = {
    "params_file": ("", "parameter file of the policy node"),
    "rviz": ("false", "true: RViz opens with the package's configuration"),
}


def start(context: LaunchContext) -> list[Node | RegisterEventHandler]:
    """Turn the arguments into processes; when one of them ends, all end."""
    refuse_unknown(sys.argv, __file__, (*ARGUMENTS, *OWN_ARGUMENTS))
    text = {name: LaunchConfiguration(name).perform(context) for name in (*ARGUMENTS, *OWN_ARGUMENTS)}
    text["params"] = text.pop("params_file") or text["params"]
    rviz = text.pop("rviz").lower() == "true"
    bringup = Bringup.from_text(text)
    nodes = [node(process) for process in bringup.processes()]
    ends = [RegisterEventHandler(OnProcessExit(target_action=action, on_exit=_end_all)) for action in nodes]
    return [*nodes, *ends, *([_rviz(bringup)] if rviz else [])]


def node(process: Process) -> Node:
    """Return launch's own description of a process."""
    return Node(
        package="flashvla_ros",
        executable=process.executable,
        name=process.name,
        namespace=process.namespace,
        parameters=[*map(str, process.files), str(process.own_file())],
        remappings=list(process.remappings),
        ros_arguments=["--log-level", process.log_level] if process.log_level else None,
        additional_env={PARENT_VARIABLE: str(os.getpid())},  # a killed launch takes its nodes along
        output="screen",
        sigterm_timeout="20",  # ending a process with a model in it can take a while; its robot stops at once
    )


def _rviz(bringup: Bringup) -> Node:
    return Node(
        package="rviz2",
        executable="rviz2",
        namespace=bringup.namespace,
        arguments=["-d", str(share_path("config", "flashvla.rviz"))],
        output="log",
    )


def _end_all(event: ProcessExited, context: LaunchContext) -> EmitEvent | None:
    if context.is_shutdown:
        return None  # a second Shutdown would send a second SIGINT to processes that are ending already
    if event.returncode:  # launch then shuts down as well, and its own exit code is 1
        raise FlashVLAError(f"{event.process_name} ended with exit code {event.returncode}")
    return EmitEvent(event=Shutdown(reason=f"{event.process_name} has ended"))


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments, with the defaults of the description that they fill in."""
    rows = [
        (name, DEFAULTS[name].lower() if DEFAULTS[name] in ("True", "False") else DEFAULTS[name], words)
        for name, words in ARGUMENTS.items()
    ]
    rows += [(name, default, words) for name, (default, words) in OWN_ARGUMENTS.items()]
    declared = [DeclareLaunchArgument(name, default_value=default, description=words) for name, default, words in rows]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])

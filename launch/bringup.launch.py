"""Start the policy node with the simulated robot, or with the camera of a real one.

    ros2 launch flashvla_ros bringup.launch.py
    ros2 launch flashvla_ros bringup.launch.py task:=drawer-close episodes:=3
    ros2 launch flashvla_ros bringup.launch.py camera:=/camera/image_raw checkpoint:=/models/openvla-7b \
        instruction:="pick up the red block" params:=/robots/arm.yaml remap:="command:=/servo_node/delta_twist_cmds"

The processes are those of ``flashvla-ros bringup``; both come from ``flashvla_ros.bringup.processes``.
"""

from __future__ import annotations

import dataclasses

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, OpaqueFunction, RegisterEventHandler
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from flashvla_ros.bringup.processes import Bringup, Process

ARGUMENTS = {
    "task": "task of the simulated robot",
    "instruction": "what the robot is told, in place of the task's own words",
    "episodes": "number of episodes; 0: until Ctrl-C",
    "seed": "seed of the first episode's scene",
    "lock_step": "true: the robot waits for each command, and runs repeat exactly",
    "camera": "image topic of a real robot, or name:=topic for each of several; nothing is simulated then",
    "checkpoint": "folder of an OpenVLA checkpoint; empty: the demo policy",
    "params": "parameter file of the policy node",
    "remap": "topics under other names, such as command:=/servo_node/delta_twist_cmds",
}
DEFAULTS = {field.name: str(field.default) for field in dataclasses.fields(Bringup) if field.name in ARGUMENTS}


def start(context: LaunchContext) -> list[Node | RegisterEventHandler]:
    """Turn the arguments into processes; when one of them ends, all end."""
    text = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    bringup = Bringup(
        **{name: text[name] for name in ("task", "instruction", "camera", "checkpoint", "params", "remap")},
        episodes=int(text["episodes"]),
        seed=int(text["seed"]),
        lock_step=text["lock_step"].lower() == "true",
    )
    nodes = [node(process) for process in bringup.processes()]
    ends = [
        RegisterEventHandler(
            OnProcessExit(target_action=action, on_exit=[EmitEvent(event=Shutdown(reason="it ended"))])
        )
        for action in nodes
    ]
    return [*nodes, *ends]


def node(process: Process) -> Node:
    """Return launch's own description of a process."""
    return Node(
        package="flashvla_ros",
        executable=process.executable,
        name=process.name,
        parameters=[*map(str, process.files), dict(process.parameters)],
        remappings=list(process.remappings),
        output="screen",
        sigterm_timeout="20",  # ending a process with a model in it can take a while; its robot stops at once
    )


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments, with the defaults of the description that they fill in."""
    declared = [
        DeclareLaunchArgument(name, default_value=DEFAULTS[name], description=words)
        for name, words in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])

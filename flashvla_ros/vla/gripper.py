"""What a checkpoint's statistics say of its gripper, held against what the parameters declare.

The statistics have the range of a gripper's values, masked or not; which end opens stands in no file.
"""

from __future__ import annotations

from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.settings import Settings
from flashvla_ros.vla.statistics import Bounds

_SLACK = 0.25  # of the range: percentiles lie a little inside it


def check_gripper(settings: Settings, bounds: Bounds) -> None:
    """Refuse a declaration, or a middle for the gate, that the statistics contradict.

    Raises:
        SettingsError: Names the parameter, the range that the statistics have, and the value to set.
    """
    kinds, declared = settings.action.kinds, settings.action.gripper
    if len(kinds) != bounds.size or not declared or bounds.kind == "mean_std":
        return
    for index, (name, kind) in enumerate(zip(settings.action.names, kinds, strict=True)):
        low, high = float(bounds.low[index]), float(bounds.high[index])
        if kind != "gripper" or not low < high:  # NaN, or a gripper that never moved
            continue
        slack = _SLACK * (high - low)
        if abs(min(declared) - low) > slack or abs(max(declared) - high) > slack:
            raise SettingsError(
                f"action.gripper says that {declared[0]:g} opens and {declared[1]:g} closes, but in the checkpoint's "
                f"statistics {name} runs from {low:g} to {high:g}: set action.gripper to [{high:g}, {low:g}] where the "
                f"greater value opens, as in OpenVLA's own data sets, else to [{low:g}, {high:g}]"
            )
        middle = 0.0 if bounds.mask[index] else 0.5 * (low + high)  # one that is not scaled is its own
        if abs(settings.gate.gripper_middle - middle) > (2 * _SLACK if bounds.mask[index] else slack):
            raise SettingsError(
                f"gate.gripper_middle is {settings.gate.gripper_middle:g}, but {name} runs from {low:g} to {high:g} "
                f"and is half open at {middle:g} in normalised units: set it to {middle:g}"
            )


def describe_gripper(settings: Settings) -> str:
    """Return what opens and closes the grippers, in the policy's action and on the topic."""
    if "gripper" not in settings.action.kinds:
        return "none among action.kinds"
    if not settings.action.gripper:
        return "action.gripper is empty: the values leave as they are, and nothing holds them against the statistics"
    text = "{:g} opens, {:g} closes".format(*settings.action.gripper)
    if settings.command.gripper:
        text += "; on gripper_command {:g} opens, {:g} closes".format(*settings.command.gripper)
    return f"{text}; half open at {settings.gate.gripper_middle:g} in normalised units (gate.gripper_middle)"

"""Every parameter of the policy node, once: name, type, default, unit, range, dynamic or fixed, description.

A group of parameters is a frozen dataclass and a parameter is one of its fields, so that code reads typed
attributes (``settings.gate.delta``) while declaration, YAML, reference page and command line read the same rows
through :data:`PARAMETERS`. Nothing here knows ROS.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any

from flashvla_ros.core import consistency
from flashvla_ros.core.errors import SettingsError

Value = bool | int | float | str | tuple[float, ...] | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One row of the table. ``low`` and ``high`` are inclusive and hold for each element of an array."""

    name: str
    default: Value
    kind: str  # bool | int | float | str | float_array | str_array
    description: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    dynamic: bool = False

    @property
    def rule(self) -> str:
        """The constraint in words, empty where there is none."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.low is not None and self.high is not None:
            return f"from {self.low:g} to {self.high:g}"
        if self.low is not None:
            return f"at least {self.low:g}"
        return "" if self.high is None else f"at most {self.high:g}"

    def parse(self, value: Any) -> Value:
        """Return `value` in this parameter's own type, or raise :class:`SettingsError` naming the broken rule."""
        converted = _convert(self, value)
        elements = converted if isinstance(converted, tuple) else (converted,)
        for element in elements:
            if isinstance(element, float) and not math.isfinite(element):
                raise SettingsError(f"{self.name} must be finite, got {value!r}")
            if self.choices and element not in self.choices:
                raise SettingsError(f"{self.name} must be {self.rule}, got {element!r}")
            if isinstance(element, (int, float)) and not isinstance(element, bool) and not self._in_range(element):
                raise SettingsError(f"{self.name} must be {self.rule}{self._unit_words}, got {element!r}")
        return converted

    def _in_range(self, value: float) -> bool:
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    @property
    def _unit_words(self) -> str:
        return f" {self.unit}" if self.unit else ""


def _convert(parameter: Parameter, value: Any) -> Value:
    """Check the type; an int is a fine float, a bool is neither."""
    if isinstance(value, (list, tuple)) or hasattr(value, "tolist"):
        sequence = list(value)
        if parameter.kind == "float_array" and all(_is_number(element) for element in sequence):
            return tuple(float(element) for element in sequence)
        if parameter.kind == "str_array" and all(isinstance(element, str) for element in sequence):
            return tuple(sequence)
    elif parameter.kind == "float" and _is_number(value):
        return float(value)
    elif parameter.kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        return value
    elif parameter.kind == "bool" and isinstance(value, bool):
        return value
    elif parameter.kind == "str" and isinstance(value, str):
        return value
    raise SettingsError(f"{parameter.name} must be of type {parameter.kind}, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _row(default: Any, description: str, **rule: Any) -> Any:
    """A dataclass field that carries its row of the table."""
    return dataclasses.field(default=default, metadata={"description": description, **rule})


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """Which checkpoint runs, and on what."""

    checkpoint: str = _row("", "Folder of a checkpoint in OpenVLA's Hugging Face layout; empty: the demo policy.")
    unnorm_key: str = _row("", "Data set of norm_stats whose statistics un-normalise actions; empty: the only one.")
    center_crop: float = _row(
        1.0,
        "Share of the image's area around its centre that the model sees, after resizing; 0.9 for a checkpoint that "
        "OpenVLA fine-tuned with image augmentation, as for LIBERO; 1: the whole image.",
        low=0.1,
        high=1.0,
    )
    device: str = _row("auto", "Torch device such as cpu or cuda:0; auto: CUDA where there is a GPU.")
    dtype: str = _row(
        "auto",
        "Floating-point type of the weights; auto: bfloat16 on CUDA, float32 on the CPU.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    attention: str = _row(
        "auto",
        "Attention implementation; auto: FlashAttention 2 where it is installed and the device is CUDA, else SDPA.",
        choices=("auto", "flash_attention_2", "sdpa", "eager"),
    )
    engine: str = _row(
        "auto",
        "How a step is run; eager: transformers' modules, the reference; static: fixed buffers and fused products, "
        "recorded as CUDA graphs on CUDA; compiled: static, with what stands around attention compiled by "
        "torch.compile, which takes about a minute in the first steps and gains nothing on the CPU; auto: static, "
        "unless model.attention is eager.",
        choices=("auto", "eager", "static", "compiled"),
    )
    threads: int = _row(0, "CPU threads of the model; 0: torch's default.", low=0, high=256)


@dataclasses.dataclass(frozen=True)
class PruningSettings:
    """Which visual tokens the decoder keeps."""

    method: str = _row(
        "ics_values",
        "How visual tokens are scored; none: nothing is scored and nothing dropped.",
        choices=("ics", "ics_hidden", "ics_values", "fastv", "divprune", "dart", "temporal", "norm", "random", "none"),
        dynamic=True,
    )
    keep_ratio: float = _row(
        0.75,
        "Share of the visual tokens that is kept; 1 keeps all.",
        low=0.01,
        high=1.0,
        dynamic=True,
    )
    layer: int = _row(
        2,
        "First decoder layer (from 0) that sees only the kept tokens; scores come from the layer before it, at 0 from "
        "what enters the decoder.",
        low=0,
        high=128,
        dynamic=True,
    )
    rank: int = _row(
        0,
        "Singular values that count in the information contribution score; 0: all.",
        low=0,
        high=4096,
        dynamic=True,
    )
    drop: bool = _row(
        True,
        "Drop the tokens that were not selected; false: select for the gate alone, the decoder sees every token.",
        dynamic=True,
    )
    seed: int = _row(0, "Seed of what the methods random and temporal draw.", low=0, high=2**31 - 1, dynamic=True)


@dataclasses.dataclass(frozen=True)
class DecodeSettings:
    """How action tokens are decoded."""

    mode: str = _row(
        "greedy",
        "greedy: one token after the other; draft: the last fresh action's tokens are checked in the pass over the "
        "prompt, and decoding goes on from the first that the model would not have chosen.",
        choices=("greedy", "draft"),
        dynamic=True,
    )
    accept_bins: int = _row(
        0,
        "A draft token this many bins from the model's choice is accepted; 0: the action equals that of greedy.",
        unit="bins of 255",
        low=0,
        high=254,
        dynamic=True,
    )
    max_near: int = _row(
        2,
        "Most tokens of one action that are accepted without being the model's own choice.",
        low=0,
        high=1024,
        dynamic=True,
    )


@dataclasses.dataclass(frozen=True)
class GateSettings:
    """When the last action is used again instead of running the model."""

    mode: str = _row(
        "guarded",
        "off: always infer; paper: angle, overlap and reuse cap alone; guarded: every guard.",
        choices=("off", "paper", "guarded"),
        dynamic=True,
    )
    delta: float = _row(
        0.5,
        "δ: least chance-corrected overlap of the last two fresh sets of kept tokens that allows reuse.",
        low=0.0,
        high=1.0,
        dynamic=True,
    )
    max_angle_deg: float = _row(
        10.0,
        "ε₁: angle between the last two fresh actions below which reuse is allowed.",
        unit="deg",
        low=0.0,
        high=180.0,
        dynamic=True,
    )
    still_norm: float = _row(
        0.05,
        "Norm of a normalised action below which it counts as still, where an angle means nothing.",
        low=0.0,
        high=10.0,
        dynamic=True,
    )
    still_difference: float = _row(
        0.05,
        "Where both actions are still: largest norm of their difference that allows reuse.",
        low=0.0,
        high=10.0,
        dynamic=True,
    )
    max_reuse: int = _row(2, "Most reused steps in a row.", low=0, high=1000, dynamic=True)
    fresh_between: int = _row(
        1,
        "Least fresh steps between two runs of reused ones.",
        low=1,
        high=1000,
        dynamic=True,
    )
    max_age_s: float = _row(
        1.0,
        "Oldest fresh result that may be used again.",
        unit="s",
        low=0.0,
        high=60.0,
        dynamic=True,
    )
    stale_gap_s: float = _row(
        1.0,
        "Gap between two observations after which the memory is forgotten.",
        unit="s",
        low=0.0,
        high=60.0,
        dynamic=True,
    )
    gripper_margin: float = _row(
        0.2,
        "A normalised gripper value closer to gate.gripper_middle than this is about to flip and forbids reuse.",
        low=0.0,
        high=1.0,
        dynamic=True,
    )
    gripper_still: float = _row(
        0.02,
        "A gripper whose value stayed within this range over the last two fresh actions is at rest and does not "
        "forbid reuse, wherever it is: one that holds half a grip, or gets no effort at all.",
        low=0.0,
        high=1.0,
        dynamic=True,
    )
    gripper_middle: float = _row(
        0.0,
        "Normalised gripper value between open and closed; 0.5 for a checkpoint whose gripper runs from 0 to 1.",
        low=-1.0,
        high=1.0,
        dynamic=True,
    )
    scene_factor: float = _row(
        3.0,
        "A patch changed where it differs from the last fresh frame by this many times the running level of change.",
        low=1.0,
        high=1000.0,
        dynamic=True,
    )
    scene_floor: float = _row(
        8.0,
        "Least difference of a patch's mean, in grey levels of 255, that can count as a change of the scene.",
        low=0.0,
        high=255.0,
        dynamic=True,
    )
    scene_patches: int = _row(
        2,
        "Number of changed patches that makes a changed scene; 0 switches this guard off.",
        low=0,
        high=4096,
        dynamic=True,
    )


@dataclasses.dataclass(frozen=True)
class ControlSettings:
    """Rates, time-outs and what stops the robot."""

    rate_hz: float = _row(
        0.0,
        "Most control steps in a second; 0: one for every image that arrives.",
        unit="Hz",
        low=0.0,
        high=1000.0,
        dynamic=True,
    )
    image_timeout_s: float = _row(
        0.5,
        "Silence of a camera after which the robot is stopped.",
        unit="s",
        low=0.02,
        high=60.0,
        dynamic=True,
    )
    frozen_image_s: float = _row(
        2.0,
        "Time for which a camera may send the same picture, byte for byte, while the robot is commanded; 0: for ever, "
        "as a simulated camera without noise may.",
        unit="s",
        low=0.0,
        high=60.0,
        dynamic=True,
    )
    inference_timeout_s: float = _row(
        2.0,
        "Time a step may take before the robot is stopped and its result dropped.",
        unit="s",
        low=0.02,
        high=600.0,
        dynamic=True,
    )
    stop_action: str = _row(
        "zero",
        "Command published once when the robot must stop: deltas and velocities become 0, a gripper stays as it is, an "
        "absolute dimension stays where it was measured (zero) or at its last target (hold); none: silence.",
        choices=("zero", "hold", "none"),
    )
    dry_run: bool = _row(
        False,
        "Compute, check and show commands, and send none; the robot is stopped first where it moves.",
        dynamic=True,
    )
    speed_scale: float = _row(
        1.0,
        "Share of the policy's motion that is commanded: of every delta and velocity, and of the way from the last "
        "command to an absolute target; a gripper is left alone.",
        low=0.0,
        high=1.0,
        dynamic=True,
    )
    ramp_s: float = _row(
        0.0,
        "Time in which the scale in force rises from 0 to 1: after a start, a stop or a reset, and towards a higher "
        "control.speed_scale; 0: at once.",
        unit="s",
        low=0.0,
        high=60.0,
        dynamic=True,
    )
    max_deviation: tuple[float, ...] = _row(
        (),
        "Distance of an absolute dimension from its command that stops the robot, one value per dimension; "
        "0: not watched; empty: none is.",
        unit="command units",
        low=0.0,
        dynamic=True,
    )
    deviation_time_s: float = _row(
        0.5,
        "Time that a deviation must last, or the measurement be missing, before it stops the robot.",
        unit="s",
        low=0.0,
        high=60.0,
        dynamic=True,
    )
    state_timeout_s: float = _row(
        1.0,
        "Age beyond which joint_states and end_effector_pose no longer say where the robot is.",
        unit="s",
        low=0.02,
        high=60.0,
        dynamic=True,
    )
    latency_budget_s: float = _row(
        0.0,
        "Time from an image's stamp to its command, 95th percentile, above which /diagnostics warns; 0: any.",
        unit="s",
        low=0.0,
        high=60.0,
        dynamic=True,
    )


@dataclasses.dataclass(frozen=True)
class LimitsSettings:
    """Bounds of every command, one value per action dimension; an empty list sets none."""

    lower: tuple[float, ...] = _row((), "Least value of each dimension.", unit="command units", dynamic=True)
    upper: tuple[float, ...] = _row((), "Greatest value of each dimension.", unit="command units", dynamic=True)
    max_step: tuple[float, ...] = _row(
        (),
        "Greatest change of each dimension between two commands.",
        unit="command units",
        low=0.0,
        dynamic=True,
    )
    workspace_lower: tuple[float, ...] = _row(
        (),
        "Least x, y and z of the end effector, in command.frame_id; deltas and velocities need end_effector_pose.",
        unit="m",
        dynamic=True,
    )
    workspace_upper: tuple[float, ...] = _row(
        (), "Greatest x, y and z of the end effector, likewise.", unit="m", dynamic=True
    )
    joint_lower: tuple[float, ...] = _row(
        (),
        "Least position of each dimension's joint, -1e9: any; deltas and velocities need joint_states.",
        unit="rad or m",
        dynamic=True,
    )
    joint_upper: tuple[float, ...] = _row(
        (), "Greatest position of each dimension's joint, 1e9: any; likewise.", unit="rad or m", dynamic=True
    )
    joint_velocity: tuple[float, ...] = _row(
        (), "Greatest speed of each dimension's joint, 1e9: any.", unit="rad/s or m/s", low=0.0, dynamic=True
    )
    urdf: str = _row(
        "", "URDF file whose joint limits become limits.joint_lower, joint_upper and joint_velocity at configure."
    )
    robot_description: bool = _row(False, "Take the URDF from the topic robot_description instead of a file.")


@dataclasses.dataclass(frozen=True)
class ActionSettings:
    """What the dimensions of the policy's action mean."""

    names: tuple[str, ...] = _row(("x", "y", "z", "gripper"), "Name of each dimension of the action.")
    kinds: tuple[str, ...] = _row(
        ("delta", "delta", "delta", "gripper"),
        "Kind of each dimension.",
        choices=("delta", "velocity", "absolute", "gripper"),
    )
    dt_s: float = _row(0.1, "Time that one action covers; a delta over it is a velocity.", unit="s", low=0.001, high=10)


@dataclasses.dataclass(frozen=True)
class CommandSettings:
    """How actions leave the node."""

    type: str = _row(
        "TwistStamped",
        "Message type of the command topic; docs/controllers.md has the controllers that read each.",
        choices=("TwistStamped", "PoseStamped", "JointTrajectory", "Float64MultiArray"),
    )
    frame_id: str = _row("base_link", "Frame in the header of a stamped command.")


@dataclasses.dataclass(frozen=True)
class CameraSettings:
    """Where images come from."""

    names: tuple[str, ...] = _row((), "Cameras; <name>/image is read for each, and image where the list is empty.")
    compressed: bool = _row(False, "Read <topic>/compressed (CompressedImage) instead of raw images.")
    reliable: bool = _row(False, "Ask for reliable delivery of images; false connects to every publisher.")


@dataclasses.dataclass(frozen=True)
class NodeSettings:
    """How the node starts."""

    autostart: bool = _row(False, "Configure and activate at start, without a lifecycle manager.")
    instruction: str = _row("", "Instruction until the first message on the instruction topic; empty: wait for one.")


@dataclasses.dataclass(frozen=True)
class Settings:
    """All parameters, grouped; a parameter's name is ``<group>.<field>``."""

    model: ModelSettings = ModelSettings()
    pruning: PruningSettings = PruningSettings()
    decode: DecodeSettings = DecodeSettings()
    gate: GateSettings = GateSettings()
    control: ControlSettings = ControlSettings()
    limits: LimitsSettings = LimitsSettings()
    action: ActionSettings = ActionSettings()
    command: CommandSettings = CommandSettings()
    camera: CameraSettings = CameraSettings()
    node: NodeSettings = NodeSettings()

    def __post_init__(self) -> None:
        consistency.check(self)

    def with_values(self, values: Mapping[str, Any]) -> Settings:
        """Return a copy with some parameters replaced; nothing is changed where one of them is refused."""
        by_group: dict[str, dict[str, Value]] = {}
        for name, value in values.items():
            group, _, field = name.partition(".")
            by_group.setdefault(group, {})[field] = find(name).parse(value)
        groups = {group: dataclasses.replace(getattr(self, group), **fields) for group, fields in by_group.items()}
        return dataclasses.replace(self, **groups)

    def values(self) -> dict[str, Value]:
        """Return every parameter's value by its full name, in the order of the table."""
        return {row.name: getattr(getattr(self, row.name.split(".")[0]), row.name.split(".")[1]) for row in PARAMETERS}


def _kind_of(default: Any, annotation: str) -> str:
    if isinstance(default, tuple):
        return "float_array" if "float" in annotation else "str_array"
    return type(default).__name__


def _rows() -> tuple[Parameter, ...]:
    rows = []
    for group in dataclasses.fields(Settings):
        for field in dataclasses.fields(group.default):  # type: ignore[arg-type]
            metadata = dict(field.metadata)
            kind = _kind_of(field.default, str(field.type))
            default = getattr(group.default, field.name)
            rows.append(Parameter(name=f"{group.name}.{field.name}", default=default, kind=kind, **metadata))
    return tuple(rows)


PARAMETERS: tuple[Parameter, ...] = _rows()
_BY_NAME = {row.name: row for row in PARAMETERS}


def find(name: str) -> Parameter:
    """Return the row of a parameter, or raise :class:`SettingsError` with the names that are close to it."""
    if name not in _BY_NAME:
        close = difflib.get_close_matches(name, _BY_NAME, n=3) or sorted(_BY_NAME)
        raise SettingsError(f"there is no parameter {name!r}; did you mean {', '.join(close)}?")
    return _BY_NAME[name]

"""Every parameter of the policy node, once: name, type, default, unit, range, fixed or not, description.

A group of parameters is a frozen dataclass and a parameter is one of its fields, so that code reads typed
attributes (``settings.gate.delta``) while declaration, YAML, reference page and command line read the same rows
through :data:`PARAMETERS`. Nothing here knows ROS.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flashvla_ros.core import parameter, rules
from flashvla_ros.core.parameter import Parameter, Value, row
from flashvla_ros.core.remote_settings import RemoteSettings


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """Which checkpoint runs, and on what."""

    checkpoint: str = row(
        "", "Folder of a checkpoint in OpenVLA's Hugging Face layout; empty: the demo policy.", fixed=True
    )
    architecture: str = row(
        "auto",
        "What makes an action of the network's output; auto: what the files in the checkpoint's folder say.",
        choices=("auto", "openvla", "openvla_oft", "univla"),
        fixed=True,
    )
    preset: str = row(
        "none",
        "Of an OpenVLA-OFT checkpoint, what its training took from the words of its command line and wrote into no "
        "file: chunk_size, action_bounds and images; parameters that are set go before it. Of "
        "UniVLA, bridge leaves the last latent action out of the prompt.",
        choices=("none", "libero", "aloha", "bridge"),
        fixed=True,
    )
    chunk_size: int = row(
        0, "Time steps of an OpenVLA-OFT checkpoint's action; 0: what the preset says.", low=0, high=1000, fixed=True
    )
    action_bounds: str = row(
        "auto",
        "Statistics that un-normalise an OpenVLA-OFT checkpoint's action and normalise its state: q01 and q99, min and "
        "max, or mean and deviation; auto: what the preset says.",
        choices=("auto", "quantiles", "min_max", "mean_std"),
        fixed=True,
    )
    images: int = row(
        0,
        "Cameras that the checkpoint sees; 0: what its config.json says (num_images_in_input), or else the preset.",
        low=0,
        high=8,
        fixed=True,
    )
    proprio: tuple[str, ...] = row(
        (),
        "Names of the robot's state in the order of training, for a checkpoint that is told of it: joints of "
        "joint_states; x, y, z, rx, ry, rz and qx to qw of end_effector_pose; ax, ay, az for its rotation as axis "
        "times angle.",
        fixed=True,
    )
    sampling: bool = row(
        False,
        "Of UniVLA: draw latent actions as the official code does (temperature 0.75, top-k 50, top-p 0.9), seeded by "
        "the observation's stamp so that a replay is exact; no draft is used then. false: take the most likely ones.",
        fixed=True,
    )
    remote: str = row(
        "",
        "Address ws://HOST:PORT of a policy server that speaks openpi's protocol, in place of a checkpoint; any other "
        "machine's is wss:// and needs an API key.",
        fixed=True,
    )
    unnorm_key: str = row(
        "", "Data set of norm_stats whose statistics un-normalise actions; empty: the only one.", fixed=True
    )
    center_crop: float = row(
        1.0,
        "Share of the image's area around its centre that the model sees, after resizing; 0.9 for a checkpoint that "
        "OpenVLA fine-tuned with image augmentation, as for LIBERO; 1: the whole image.",
        low=0.1,
        high=1.0,
        fixed=True,
    )
    device: str = row("auto", "Torch device such as cpu or cuda:0; auto: CUDA where there is a GPU.", fixed=True)
    dtype: str = row(
        "auto",
        "Floating-point type of the weights; auto: bfloat16 on CUDA, float32 on the CPU.",
        choices=("auto", "float32", "bfloat16", "float16"),
        fixed=True,
    )
    attention: str = row(
        "auto",
        "Attention implementation; auto: FlashAttention 2 where it is installed and the device is CUDA, else SDPA.",
        choices=("auto", "flash_attention_2", "sdpa", "eager"),
        fixed=True,
    )
    engine: str = row(
        "auto",
        "How a step is run; eager: plain modules, the reference; static: fixed buffers and fused products, "
        "recorded as CUDA graphs on CUDA; compiled: static, with what stands around attention compiled by "
        "torch.compile, which takes about a minute in the first steps and gains nothing on the CPU; auto: static, "
        "unless model.attention is eager.",
        choices=("auto", "eager", "static", "compiled"),
        fixed=True,
    )
    check: str = row(
        "first",
        "first: the robot's first observation is answered by the engine eager too, before any command, and eager goes "
        "on where the two differ; that answer takes up to three times as long. off: model.engine is trusted.",
        choices=("first", "off"),
        fixed=True,
    )
    threads: int = row(0, "CPU threads of the model; 0: torch's default.", low=0, high=256, fixed=True)


@dataclasses.dataclass(frozen=True)
class PruningSettings:
    """Which visual tokens the decoder keeps."""

    method: str = row(
        "ics_values",
        "How visual tokens are scored; none: nothing is scored and nothing dropped.",
        choices=("ics", "ics_hidden", "ics_values", "fastv", "divprune", "dart", "temporal", "norm", "random", "none"),
    )
    keep_ratio: float = row(0.75, "Share of the visual tokens that is kept; 1 keeps all.", low=0.01, high=1.0)
    layer: int = row(
        2,
        "First decoder layer (from 0) that sees only the kept tokens; scores come from the layer before it, at 0 from "
        "what enters the decoder.",
        low=0,
        high=128,
    )
    rank: int = row(0, "Singular values that count in the information contribution score; 0: all.", low=0, high=4096)
    drop: bool = row(
        True, "Drop the tokens that were not selected; false: select for the gate alone, the decoder sees every token."
    )
    seed: int = row(0, "Seed of what the methods random and temporal draw.", low=0, high=2**31 - 1)


@dataclasses.dataclass(frozen=True)
class DecodeSettings:
    """How action tokens are decoded."""

    mode: str = row(
        "greedy",
        "greedy: one token after the other; draft: the last fresh action's tokens are checked in the pass over the "
        "prompt, and decoding goes on from the first that the model would not have chosen.",
        choices=("greedy", "draft"),
    )
    accept_bins: int = row(
        0,
        "A draft token this many bins from the model's choice is accepted; 0: the action is the one that greedy gives.",
        unit="bins of 255",
        low=0,
        high=254,
    )
    max_near: int = row(
        2, "Most tokens of one action that are accepted without being the model's own choice.", low=0, high=1024
    )


@dataclasses.dataclass(frozen=True)
class GateSettings:
    """When the last action is used again instead of running the model."""

    mode: str = row(
        "guarded",
        "off: infer whenever the model is due, which is at every step unless it plans in chunks; paper: angle, overlap "
        "and reuse cap alone; guarded: every guard.",
        choices=("off", "paper", "guarded"),
    )
    calibration: str = row(
        "off",
        "off: δ, ε₁ and reuse cap are the parameters below; online: they move by themselves so that calibration.risk "
        "holds, and cannot be set.",
        choices=("off", "online"),
    )
    delta: float = row(
        0.5,
        "δ: least chance-corrected overlap of the last two fresh sets of kept tokens that allows reuse.",
        low=0.0,
        high=1.0,
    )
    max_angle_deg: float = row(
        10.0,
        "ε₁: angle between the last two fresh actions below which reuse is allowed.",
        unit="deg",
        low=0.0,
        high=180.0,
    )
    tokenless_angle_deg: float = row(
        0.0,
        "ε₁ where the policy gives no sets of kept tokens, as a remote one, so that no overlap supports the angle; "
        "gate.max_angle_deg where that is smaller; 0: never reuse there.",
        unit="deg",
        low=0.0,
        high=180.0,
    )
    still_norm: float = row(
        0.05,
        "Norm of a normalised action below which it counts as still, where an angle means nothing.",
        low=0.0,
        high=10.0,
    )
    still_difference: float = row(
        0.05,
        "Where one of the two actions is still: largest norm of their difference that allows reuse.",
        low=0.0,
        high=10.0,
    )
    max_reuse: int = row(
        2, "Most reused steps in a row; along a chunk, most runs of the model skipped in a row.", low=0, high=1000
    )
    replan_after: int = row(
        0,
        "Time steps of a chunk after which the model is due again, and may be skipped up to the chunk's end; before, "
        "the chunk is followed unless the scene changes; 0: the whole chunk.",
        low=0,
        high=1000,
    )
    fresh_between: int = row(1, "Least fresh steps between two runs of reused ones.", low=1, high=1000)
    max_age_s: float = row(1.0, "Oldest fresh result that may be used again.", unit="s", low=0.0, high=60.0)
    stale_gap_s: float = row(
        1.0, "Gap between two observations after which the memory is forgotten.", unit="s", low=0.0, high=60.0
    )
    gripper_margin: float = row(
        0.2,
        "A normalised gripper value closer to gate.gripper_middle than this is about to flip and forbids reuse.",
        low=0.0,
        high=1.0,
    )
    gripper_still: float = row(
        0.02,
        "A gripper whose value stayed within this range over the last two fresh actions is at rest and does not "
        "forbid reuse, wherever it is: one that holds half a grip, or gets no effort at all.",
        low=0.0,
        high=1.0,
    )
    gripper_middle: float = row(
        0.0,
        "Normalised gripper value between open and closed; 0.5 for a checkpoint whose gripper runs from 0 to 1.",
        low=-1.0,
        high=1.0,
    )
    scene_factor: float = row(
        3.0,
        "A patch changed if it differs from the last fresh frame by this many times its expected change.",
        low=1.0,
        high=1000.0,
    )
    scene_floor: float = row(
        8.0,
        "Least difference of a patch's mean, in grey levels of 255, that can count as a change of the scene.",
        low=0.0,
        high=255.0,
    )
    scene_patches: int = row(
        2, "Number of changed patches that makes a changed scene; 0 switches this guard off.", low=0, high=4096
    )


@dataclasses.dataclass(frozen=True)
class CalibrationSettings:
    """How the gate's thresholds keep themselves right."""

    risk: float = row(
        0.05,
        "ε: share of the control steps, in the long run, that may reuse an action that the model would not repeat.",
        low=0.001,
        high=0.5,
    )
    tolerance: float = row(
        0.2,
        "Largest difference of any dimension between a reused action and the model's own that counts as the same.",
        unit="normalised",
        low=0.0,
        high=2.0,
    )
    audit_rate: float = row(
        0.1, "Share of the steps to be reused at which the model runs all the same.", low=0.01, high=1.0
    )
    confidence: float = row(0.95, "Confidence of what is said to be certified at a step.", low=0.5, high=0.9999)
    min_delta: float = row(0.0, "Least δ that may come into force.", low=0.0, high=1.0)
    max_angle_deg: float = row(40.0, "Greatest ε₁ that may come into force.", unit="deg", low=0.0, high=180.0)
    max_reuse: int = row(4, "Greatest reuse cap that may come into force.", low=0, high=1000)
    score: tuple[float, ...] = row(
        (),
        "Weights of the learnt score by which a reuse is judged, from flashvla-ros tune --score; empty: angle and "
        "overlap judge it.",
        validator=parameter.weights_of_score,
    )
    learning: float = row(
        0.0, "Rate at which the score learns from steps whose outcome is seen; 0: it stays as given.", low=0.0, high=1.0
    )
    state_file: str = row(
        "", "File that keeps what was learnt from one start to the next; of this node alone; empty: none.", fixed=True
    )


@dataclasses.dataclass(frozen=True)
class EvidenceSettings:
    """What is known of the settings."""

    certificate: str = row(
        "",
        "File of flashvla-ros certify with which the settings in force are compared; empty: certificate.json in the "
        "checkpoint's folder, where there is one.",
        fixed=True,
    )


@dataclasses.dataclass(frozen=True)
class ControlSettings:
    """Rates, time-outs and what stops the robot."""

    rate_hz: float = row(
        0.0, "Most control steps in a second; 0: one for every image that arrives.", unit="Hz", low=0.0, high=1000.0
    )
    image_timeout_s: float = row(
        0.5, "Silence of a camera after which the robot is stopped.", unit="s", low=0.02, high=60.0
    )
    frozen_image_s: float = row(
        2.0,
        "Time for which a camera may send the same picture, byte for byte, while the robot is commanded; 0: for ever, "
        "as a simulated camera without noise may.",
        unit="s",
        low=0.0,
        high=60.0,
    )
    inference_timeout_s: float = row(
        2.0, "Time a step may take before the robot is stopped and its result dropped.", unit="s", low=0.02, high=600.0
    )
    max_image_age_s: float = row(
        2.5,
        "Age by its stamp beyond which an image is not answered, on arrival and when its command is ready; one as far "
        "ahead of this machine's clock is refused too; above control.inference_timeout_s, or 0: any.",
        unit="s",
        low=0.0,
        high=600.0,
    )
    stop_action: str = row(
        "zero",
        "Command published once when the robot must stop: deltas and velocities become 0, a gripper stays as it is, an "
        "absolute dimension stays where it was measured (zero) or at its last target (hold); none: silence.",
        choices=("zero", "hold", "none"),
        fixed=True,
    )
    require_guard: bool = row(
        False,
        "Move only while a guard is heard (guard/status) and does not stop the robot; bringup sets it where it starts "
        "one.",
        fixed=True,
    )
    dry_run: bool = row(
        False, "Compute, check and show commands, and send none; the robot is stopped first where it moves."
    )
    speed_scale: float = row(
        1.0,
        "Share of the policy's motion that is commanded: of every delta and velocity, and of the way from the last "
        "command to an absolute target; a gripper is left alone.",
        low=0.0,
        high=1.0,
    )
    ramp_s: float = row(
        0.0,
        "Time in which the scale in force rises from 0 to 1: after a start, a stop or a reset, and towards a higher "
        "control.speed_scale; 0: at once.",
        unit="s",
        low=0.0,
        high=60.0,
    )
    max_deviation: tuple[float, ...] = row(
        (),
        "Distance of an absolute dimension from its command that stops the robot, one value per dimension; "
        "0: not watched; empty: none is.",
        unit="command units",
        low=0.0,
        per_dimension=True,
    )
    deviation_time_s: float = row(
        0.5,
        "Time that a deviation must last, or the measurement be missing, before it stops the robot.",
        unit="s",
        low=0.0,
        high=60.0,
    )
    state_timeout_s: float = row(
        0.2,
        "Age beyond which joint_states and end_effector_pose no longer say where the robot is; shorter than the "
        "time-outs of images, or a stop takes an arm back to where it was.",
        unit="s",
        low=0.02,
        high=60.0,
    )
    blend: str = row(
        "none",
        "none: the newest chunk is followed; temporal: the mean of what all chunks of this run say of an instant, the "
        "newest counting most, as in UniVLA; the model must run again before its chunk ends.",
        choices=("none", "temporal"),
    )
    blend_decay: float = row(
        0.1,
        "Of control.blend: a chunk's weight falls by exp(-decay) with every time step of its age.",
        low=0.0,
        high=10.0,
    )
    prefetch: int = row(
        0,
        "Time steps of a chunk before its end, or before gate.replan_after, at which the next chunk is asked for; the "
        "robot follows the present one meanwhile; 0: the next one is asked for when it is due, and waited for.",
        low=0,
        high=1000,
    )
    latency_budget_s: float = row(
        0.0,
        "Time from an image's stamp to its command, 95th percentile, above which /diagnostics warns; 0: any.",
        unit="s",
        low=0.0,
        high=60.0,
    )


@dataclasses.dataclass(frozen=True)
class MonitorSettings:
    """How a lost policy commands; ``flashvla-ros tune BAG --monitors FILE`` finds the thresholds."""

    window_s: float = row(2.0, "Time that the monitors look back.", unit="s", low=0.1, high=60.0)
    max_reversals: float = row(
        1.0, "Share of the motions that turn back against the one before, above which it warns.", low=0.0, high=1.0
    )
    max_oscillation: float = row(
        1.0, "1 - distance covered / length of the path of the window, above which it warns.", low=0.0, high=1.0
    )
    max_still_s: float = row(
        0.0, "Time without motion while commands come, after which it warns; 0: any.", unit="s", low=0.0, high=600.0
    )
    min_confidence: float = row(
        0.0, "Probability of the least certain action token, below which it warns.", low=0.0, high=1.0
    )
    stop: bool = row(False, "Stop the robot, once for each window, instead of warning alone.")


@dataclasses.dataclass(frozen=True)
class LimitsSettings:
    """Bounds of every command, one value per action dimension; an empty list sets none."""

    lower: tuple[float, ...] = row((), "Least value of each dimension.", unit="command units", per_dimension=True)
    upper: tuple[float, ...] = row((), "Greatest value of each dimension.", unit="command units", per_dimension=True)
    max_step: tuple[float, ...] = row(
        (), "Greatest change of each dimension between two commands.", unit="command units", low=0.0, per_dimension=True
    )
    workspace_lower: tuple[float, ...] = row(
        (),
        "Least x, y and z of the end effector, in command.frame_id; deltas and velocities need end_effector_pose.",
        unit="m",
        validator=parameter.three_axes,
    )
    workspace_upper: tuple[float, ...] = row(
        (),
        "Greatest x, y and z of the end effector, in command.frame_id; deltas and velocities need end_effector_pose.",
        unit="m",
        validator=parameter.three_axes,
    )
    joint_lower: tuple[float, ...] = row(
        (),
        "Least position of each dimension's joint, -1e9: any; deltas and velocities need joint_states.",
        unit="rad or m",
        per_dimension=True,
    )
    joint_upper: tuple[float, ...] = row(
        (),
        "Greatest position of each dimension's joint, 1e9: any; deltas and velocities need joint_states.",
        unit="rad or m",
        per_dimension=True,
    )
    joint_velocity: tuple[float, ...] = row(
        (), "Greatest speed of each dimension's joint, 1e9: any.", unit="rad/s or m/s", low=0.0, per_dimension=True
    )
    urdf: str = row(
        "",
        "URDF file whose joint limits become limits.joint_lower, joint_upper and joint_velocity at configure.",
        fixed=True,
    )
    robot_description: bool = row(
        False, "Take the URDF from the topic robot_description instead of a file.", fixed=True
    )


@dataclasses.dataclass(frozen=True)
class ActionSettings:
    """What the dimensions of the policy's action mean."""

    names: tuple[str, ...] = row(("x", "y", "z", "gripper"), "Name of each dimension of the action.", fixed=True)
    kinds: tuple[str, ...] = row(
        ("delta", "delta", "delta", "gripper"),
        "Kind of each dimension.",
        choices=("delta", "velocity", "absolute", "gripper"),
        fixed=True,
    )
    dt_s: float = row(
        0.1, "Time that one action covers; a delta over it is a velocity.", unit="s", low=0.001, high=10, fixed=True
    )
    gripper: tuple[float, ...] = row(
        (-1.0, 1.0),
        "Value of a gripper dimension that opens it, and value that closes it; 1 and 0 in OpenVLA's own data sets; "
        "empty: not declared, and not held against the checkpoint's statistics.",
        fixed=True,
        validator=parameter.open_and_closed,
    )


@dataclasses.dataclass(frozen=True)
class CommandSettings:
    """How actions leave the node."""

    type: str = row(
        "TwistStamped",
        "Message type of the command topic; docs/safety.md has the controllers that read each.",
        choices=("TwistStamped", "PoseStamped", "JointTrajectory", "Float64MultiArray"),
        fixed=True,
    )
    frame_id: str = row("base_link", "Frame in the header of a stamped command.", fixed=True)
    gripper: tuple[float, ...] = row(
        (),
        "Values on gripper_command that open and close the gripper, in place of action.gripper's; empty: the same.",
        fixed=True,
        validator=parameter.open_and_closed,
    )


@dataclasses.dataclass(frozen=True)
class CameraSettings:
    """Where images come from."""

    names: tuple[str, ...] = row(
        (),
        "Cameras; <name>/image is read for each, and image where the list is empty.",
        fixed=True,
        validator=parameter.topic_names,
    )
    compressed: bool = row(False, "Read <topic>/compressed (CompressedImage) instead of raw images.", fixed=True)
    reliable: bool = row(False, "Ask for reliable delivery of images; false connects to every publisher.", fixed=True)


@dataclasses.dataclass(frozen=True)
class NodeSettings:
    """How the node starts."""

    autostart: bool = row(False, "Configure and activate at start, without a lifecycle manager.", fixed=True)
    instruction: str = row(
        "", "Instruction until the first message on the instruction topic; empty: wait for one.", fixed=True
    )


@dataclasses.dataclass(frozen=True)
class Settings:
    """All parameters, grouped; a parameter's name is ``<group>.<field>``.

    Raises:
        SettingsError: Values contradict each other.
    """

    model: ModelSettings = ModelSettings()
    remote: RemoteSettings = RemoteSettings()  # noqa: RUF009 - frozen, as every group
    pruning: PruningSettings = PruningSettings()
    decode: DecodeSettings = DecodeSettings()
    gate: GateSettings = GateSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    evidence: EvidenceSettings = EvidenceSettings()
    control: ControlSettings = ControlSettings()
    monitor: MonitorSettings = MonitorSettings()
    limits: LimitsSettings = LimitsSettings()
    action: ActionSettings = ActionSettings()
    command: CommandSettings = CommandSettings()
    camera: CameraSettings = CameraSettings()
    node: NodeSettings = NodeSettings()

    def __post_init__(self) -> None:
        limits, names, kinds = self.limits, self.action.names, self.action.kinds
        command = rules.Range.of(limits, "lower", "upper")
        joint = rules.Range.of(limits, "joint_lower", "joint_upper")
        workspace = rules.Range.of(limits, "workspace_lower", "workspace_upper")
        rules.one_value_each({name: self._value(name) for name in _PER_DIMENSION}, names)
        rules.workspace_has_axes(workspace, names)
        rules.in_order(command, names)
        rules.in_order(joint, names)
        rules.in_order(workspace, rules.AXES)
        rules.can_stand_still(command, names, kinds)
        rules.positions_meet(command, joint, workspace, names, kinds)
        rules.deviation_is_absolute(self.control.max_deviation, names, kinds)
        rules.gripper_is_declared(self.action.gripper, self.command.gripper)
        model = self.model
        rules.not_both({"model.remote": model.remote, "model.checkpoint": model.checkpoint}, "a policy")
        rules.not_both({"limits.urdf": limits.urdf, "limits.robot_description": limits.robot_description}, "a URDF")
        rules.prefetch_is_uncalibrated(self.control.prefetch, self.gate.calibration)
        rules.slowest_step_is_answered(self.control.max_image_age_s, self.control.inference_timeout_s)

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
        return {row.name: self._value(row.name) for row in PARAMETERS}

    def _value(self, name: str) -> Any:
        group, field = name.split(".")
        return getattr(getattr(self, group), field)


PARAMETERS: tuple[Parameter, ...] = tuple(
    found for group in dataclasses.fields(Settings) for found in parameter.rows_of(group.default, f"{group.name}.")
)
_BY_NAME = {row.name: row for row in PARAMETERS}
_PER_DIMENSION = tuple(row.name for row in PARAMETERS if row.per_dimension)


def find(name: str) -> Parameter:
    """Return the row of a parameter, or raise :class:`SettingsError` with the names that are close to it."""
    return parameter.find(_BY_NAME, name)

"""Why the gate decided as it did, and why a robot was stopped: one list of codes, explained in docs/gate.md."""

from __future__ import annotations

import enum


class Reason(enum.StrEnum):
    """Code of the condition that decided a step; also the cause that emptied the gate's memory."""

    REUSE = "reuse"  # every condition holds: the last fresh action is used again
    OPEN_LOOP = "open_loop"  # the model is not due yet: its chunk is followed, which saves nothing
    PREFETCH = "prefetch"  # the model is being run, and its last chunk followed meanwhile

    MODE_OFF = "mode_off"

    # The memory is empty, and this is what emptied it. All but the first also stop the robot.
    START = "start"
    RESET = "reset"
    EMERGENCY_STOP = "emergency_stop"
    IMAGE_TIMEOUT = "image_timeout"
    FROZEN_IMAGE = "frozen_image"
    INFERENCE_TIMEOUT = "inference_timeout"
    COMMAND_TIMEOUT = "command_timeout"
    FAULT = "fault"
    DEVIATION = "deviation"
    DRY_RUN = "dry_run"
    DEACTIVATED = "deactivated"
    GUARD = "guard"
    MONITOR = "monitor"

    # Why the guard stopped the robot; no step of the policy has these.
    SILENCE = "silence"
    PUBLISHER = "publisher"
    STALE_COMMAND = "stale_command"
    NOT_FINITE = "not_finite"
    LIMITS = "limits"

    # The memory belongs to another run.
    NEW_INSTRUCTION = "new_instruction"
    CLOCK_JUMP = "clock_jump"
    STALE_GAP = "stale_gap"
    TOO_FEW_FRESH = "too_few_fresh"

    # Caps.
    CHUNK_END = "chunk_end"
    MAX_REUSE = "max_reuse"
    FRESH_BETWEEN = "fresh_between"
    MAX_AGE = "max_age"

    # What the actions and the frame say.
    GRIPPER = "gripper"
    SCENE_CHANGED = "scene_changed"
    STILL = "still"
    ANGLE = "angle"
    NO_TOKEN_SETS = "no_token_sets"  # noqa: S105 - visual tokens, no password
    PRUNING_CHANGED = "pruning_changed"
    OVERLAP = "overlap"

    # Where the thresholds calibrate themselves (gate.calibration).
    LEARNING = "learning"  # nothing may be reused yet, or not any more
    RISK = "risk"  # the learnt score says that a reuse would be off too likely
    AUDIT = "audit"  # this would be a reuse; the model runs to see what it would have cost


# Steps without the model.
WITHOUT_MODEL = frozenset({Reason.REUSE, Reason.OPEN_LOOP, Reason.PREFETCH})

# What empties the gate's memory; the step that follows names it.
EMPTYING = frozenset(
    {
        Reason.START,
        Reason.RESET,
        Reason.EMERGENCY_STOP,
        Reason.IMAGE_TIMEOUT,
        Reason.FROZEN_IMAGE,
        Reason.INFERENCE_TIMEOUT,
        Reason.COMMAND_TIMEOUT,
        Reason.FAULT,
        Reason.DEVIATION,
        Reason.DRY_RUN,
        Reason.DEACTIVATED,
        Reason.GUARD,
        Reason.MONITOR,
    }
)

# What only a reset ends: going on by itself would repeat it, or defy whoever pressed the button.
LATCHED = frozenset({Reason.EMERGENCY_STOP, Reason.DEVIATION})

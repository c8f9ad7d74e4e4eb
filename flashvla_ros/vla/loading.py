"""From parameters to a policy that is ready to answer, with all that its answers depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import flashvla_ros
from flashvla_ros.core.errors import ActionError, CheckpointError
from flashvla_ros.core.flops import DecoderSize
from flashvla_ros.core.paths import checkpoint_folder
from flashvla_ros.core.policy import Policy
from flashvla_ros.core.provenance import checkpoint_fingerprint
from flashvla_ros.core.settings import Settings


def _accept(_settings: Settings) -> None:
    """Any settings will do."""


@dataclasses.dataclass(frozen=True)
class EngineState:
    """What runs the model.

    Attributes:
        name: Of the engine, and whether it was checked.
        fault: Why it is not the one that was asked for, empty where it is.
    """

    name: str = ""
    fault: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedPolicy:
    """A policy, loaded and warmed up, with what the node must know of it.

    Attributes:
        policy: The model behind its port.
        check: Raises SettingsError for parameters that this checkpoint cannot do.
        checkpoint: Fingerprint of its files, empty where it has none.
        platform: What computes it, such as device, dtype and versions.
        engine: Returns what runs it now.
    """

    policy: Policy
    check: Callable[[Settings], None] = _accept
    checkpoint: str = ""
    platform: Mapping[str, str] = dataclasses.field(default_factory=dict)
    engine: Callable[[], EngineState] = EngineState


@dataclasses.dataclass(frozen=True)
class PolicyFactory:
    """How a node comes by its policy.

    Attributes:
        load: Returns it, ready to answer.
        precheck: Raises what `load` would raise, where that is known at once.
    """

    load: Callable[[Settings], LoadedPolicy]
    precheck: Callable[[Settings], None] = _accept


def check_before_loading(settings: Settings) -> None:
    """Check what a checkpoint's config.json tells, before minutes are spent on reading its weights.

    Raises:
        CheckpointError: Several cameras are declared and there is no such file to say whether it sees them.
        SettingsError: It sees another number of cameras.
    """
    if len(settings.camera.names) > 1:  # with one there is nothing to say that could not wait
        from flashvla_ros.vla.arch.table import architecture_of
        from flashvla_ros.vla.config import check_cameras

        outline = architecture_of(settings.model).outline(checkpoint_folder(settings.model.checkpoint), settings.model)
        check_cameras(settings.camera.names, outline.config)


def load_policy(settings: Settings) -> LoadedPolicy:
    """Load the checkpoint that the settings name, or the demo policy, and warm it up.

    Raises:
        CheckpointError: The folder is not a complete checkpoint, or does not fit into memory.
        SettingsError: This machine or this checkpoint cannot do what the settings ask.
    """
    check_before_loading(settings)
    # Torch takes seconds to import: only a node that loads a model pays for it.
    import torch

    from flashvla_ros.vla.arch.table import load
    from flashvla_ros.vla.checked import CheckedPolicy
    from flashvla_ros.vla.config import check_cameras
    from flashvla_ros.vla.gripper import check_gripper
    from flashvla_ros.vla.pruning.select import check_layer

    policy = load(settings.model)
    depth = len(policy.model.layers)

    def check(changed: Settings) -> None:
        check_layer(changed.pruning, depth)
        check_cameras(changed.camera.names, policy.model.config)
        check_gripper(changed, policy.bounds)

    check(settings)
    try:
        policy.warm_up(settings.pruning, settings.node.instruction.strip())
    except ActionError as error:
        raise CheckpointError(f"{checkpoint_folder(settings.model.checkpoint)} cannot be used: {error}") from error
    backend, llama = policy.backend, policy.model.config.llama()
    platform = {
        "device": torch.cuda.get_device_name(backend.device) if backend.device.type == "cuda" else "cpu",
        "dtype": backend.dtype_name,
        "attention": backend.attention,
        "engine": backend.engine,
        "decoder": str(DecoderSize(depth, llama.hidden_size, llama.intermediate_size)),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "flashvla_ros": flashvla_ros.__version__,
    }
    fingerprint = checkpoint_fingerprint(checkpoint_folder(settings.model.checkpoint))
    if settings.model.check == "off" or backend.engine == "eager":
        return LoadedPolicy(policy, check, fingerprint, platform, lambda: EngineState(backend.engine))
    checked = CheckedPolicy(policy)

    def engine() -> EngineState:
        if checked.difference:
            return EngineState("eager", checked.difference)
        return EngineState(f"{backend.engine}, {'checked' if checked.checked else 'not yet checked'}")

    return LoadedPolicy(checked, check, fingerprint, platform, engine)

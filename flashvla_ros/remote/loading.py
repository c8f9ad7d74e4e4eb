"""From parameters to a policy, on this machine or elsewhere: what the node starts with."""

from __future__ import annotations

import importlib.util

from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.extras import remedy
from flashvla_ros.core.settings import Settings
from flashvla_ros.remote.endpoint import Endpoint
from flashvla_ros.vla.loading import LoadedPolicy, PolicyFactory, check_before_loading, load_policy


def precheck(settings: Settings) -> None:
    """Refuse at once what :func:`load` would refuse.

    Raises:
        SettingsError: ``model.remote`` may not be used so.
        CheckpointError: The checkpoint does not fit.
    """
    if not settings.model.remote:
        check_before_loading(settings)
        return
    for module in ("websockets", "msgpack"):
        if importlib.util.find_spec(module) is None:
            raise SettingsError(f"model.remote needs {module}, which is not installed: {remedy('remote')}")
    Endpoint.of(settings.model.remote, settings.remote)
    check_keys(settings)


def check_keys(settings: Settings) -> None:
    """Refuse another number of keys than cameras, whichever side of the wire this is.

    Raises:
        SettingsError: ``remote.images`` does not fit ``camera.names``.
    """
    cameras, keys = settings.camera.names or ("image",), settings.remote.images
    if len(cameras) != len(keys):
        raise SettingsError(
            f"camera.names has {len(cameras)} cameras but remote.images {len(keys)} keys: give one key per camera"
        )


def load(settings: Settings) -> LoadedPolicy:
    """Connect to ``model.remote``, or load the checkpoint where there is none.

    Raises:
        FlashVLAError: It cannot be used; one line says why.
    """
    if not settings.model.remote:
        return load_policy(settings)
    precheck(settings)
    from flashvla_ros.remote.policy import RemotePolicy  # websockets is an extra

    policy = RemotePolicy.connect(settings)
    return LoadedPolicy(policy, policy.check, platform=policy.platform)


FROM_SETTINGS = PolicyFactory(load, precheck)

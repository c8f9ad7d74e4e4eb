"""Where a policy server is, and what it takes to speak to it: nothing on this machine, TLS and a key anywhere else."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import ssl
from urllib.parse import urlsplit

from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.files import read_text
from flashvla_ros.core.paths import user_path
from flashvla_ros.core.remote_settings import RemoteSettings

KEY_VARIABLE = "FLASHVLA_API_KEY"


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A server's address, with the secret and the certificates that go with it.

    Attributes:
        uri: ``ws://HOST:PORT`` or ``wss://HOST:PORT``.
        api_key: Sent as ``Authorization: Api-Key …``, as openpi's client does; empty: none.
        tls: Whom to trust; None for a plain connection.
    """

    uri: str
    api_key: str = dataclasses.field(default="", repr=False)
    tls: ssl.SSLContext | None = None

    @classmethod
    def of(cls, uri: str, settings: RemoteSettings) -> Endpoint:
        """Return the endpoint that the parameters ``model.remote`` and ``remote.*`` describe.

        Raises:
            SettingsError: The address is none, or is not of this machine and lacks TLS or a key.
        """
        try:
            parts = urlsplit(uri)
            usable = parts.scheme in ("ws", "wss") and parts.port is not None and "@" not in parts.netloc
        except ValueError:  # a port that is no number, or brackets around no address
            usable = False
        if not usable or not parts.hostname:
            raise SettingsError(f"model.remote must be ws://HOST:PORT or wss://HOST:PORT, got {uri!r}")
        key = api_key(settings.api_key_file)
        if not is_loopback(parts.hostname) and (parts.scheme != "wss" or not key):
            missing = "an API key" if parts.scheme == "wss" else "TLS (wss://) and an API key"
            raise SettingsError(
                f"model.remote {uri} is not on this machine and needs {missing}: the key comes from "
                f"remote.api_key_file or the environment variable {KEY_VARIABLE}"
            )
        return cls(uri, key, _trust(settings.ca_file) if parts.scheme == "wss" else None)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address cannot leave this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def api_key(file: str) -> str:
    """Return the key in a file, or in the environment where no file is named; empty where there is none.

    Raises:
        SettingsError: The file cannot be read, is empty, or others than its owner may read it.
    """
    if not file:
        return os.environ.get(KEY_VARIABLE, "").strip()
    path = user_path(file)
    key = read_text(path, SettingsError).strip()
    if not key or not key.isascii() or len(key.split()) != 1:
        raise SettingsError(f"{file} must hold one API key, a single word")
    if path.stat().st_mode & 0o077:
        raise SettingsError(f"others than its owner may read the API key in {file}: chmod 600 {file}")
    return key


def _trust(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(user_path(ca_file)) if ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"remote.ca_file {ca_file} holds no certificate: {error}") from error

"""Where the files beside the Python package are: models, configuration, launch files."""

from __future__ import annotations

import os
from pathlib import Path

from flashvla_ros.core.errors import FlashVLAError

PACKAGE = "flashvla_ros"


def share_path(*parts: str) -> Path:
    """Return an existing path such as ``share_path("config", "flashvla.yaml")``.

    A checkout has these folders at its root; pip and colcon install them to ``<prefix>/share/flashvla_ros``, with the
    Python package somewhere below the same prefix. So no index and no environment variable is needed to find them.

    Raises:
        FlashVLAError: The installation lacks the file.
    """
    package = Path(__file__).parents[1]
    for root in _share_roots(package):
        path = root.joinpath(*parts)
        if path.exists():
            return path
    raise FlashVLAError(f"{'/'.join(parts)} is missing from the installation at {package}; install {PACKAGE} again")


def user_path(name: str | Path) -> Path:
    """Return a path that a user gave, with ``~`` for a home; where there is none, such a path does not exist."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 - Path.expanduser raises RuntimeError where there is no home


def checkpoint_folder(name: str | Path | None) -> Path:
    """Return the folder that ``model.checkpoint`` names, that of the demo policy where it is empty."""
    return user_path(name) if name else share_path("models", "demo")


def _share_roots(package: Path) -> list[Path]:
    if (package.parent / "package.xml").is_file():
        return [package.parent]
    return [prefix / "share" / PACKAGE for prefix in package.parents]

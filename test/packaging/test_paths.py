"""Models, configuration and launch files are found in a checkout and in every installed layout."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.paths import share_path, user_path

ROOT = Path(__file__).parents[2]


def test_checkout_uses_its_own_files() -> None:
    assert share_path("config", "flashvla.yaml") == ROOT / "config" / "flashvla.yaml"


def test_missing_file_is_named() -> None:
    with pytest.raises(FlashVLAError, match=r"models/nothing is missing"):
        share_path("models", "nothing")


@pytest.mark.parametrize(
    "site_packages",
    ["lib/python3.11/site-packages", "local/lib/python3.12/dist-packages", "flashvla_ros/lib/python3.12/site-packages"],
    ids=["venv or merged colcon", "Debian", "isolated colcon"],
)
def test_installed_package_finds_its_share_folder(tmp_path: Path, site_packages: str) -> None:
    prefix = tmp_path / "flashvla_ros" if site_packages.startswith("flashvla_ros/") else tmp_path
    installed = tmp_path / site_packages / "flashvla_ros"
    shutil.copytree(ROOT / "flashvla_ros" / "core", installed / "core")
    shutil.copy(ROOT / "flashvla_ros" / "__init__.py", installed)
    config = prefix / "share" / "flashvla_ros" / "config"
    config.mkdir(parents=True)
    code = "from flashvla_ros.core.paths import share_path, user_path; print(share_path('config'))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=installed.parent, capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()) == config


def test_a_path_of_a_user_without_a_home_is_one_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert user_path("~/model") == Path("/home/somebody/model")
    assert user_path("~no_such_user/model") == Path("~no_such_user/model")

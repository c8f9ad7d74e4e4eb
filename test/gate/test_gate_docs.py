"""docs/gate.md and docs/safety.md name every reason and every parameter that they are about."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import GateSettings, LimitsSettings

DOCS = Path(__file__).parents[2] / "docs"


def test_every_reason_is_explained() -> None:
    page = (DOCS / "gate.md").read_text(encoding="utf-8")
    assert [reason for reason in Reason if f"`{reason}`" not in page] == []


def test_every_threshold_is_explained() -> None:
    page = (DOCS / "gate.md").read_text(encoding="utf-8").replace("gate.scene_*", "gate.scene_patches")
    assert [field.name for field in dataclasses.fields(GateSettings) if f"`gate.{field.name}`" not in page] == []


def test_every_limit_and_stop_is_explained() -> None:
    page = (DOCS / "safety.md").read_text(encoding="utf-8")
    names = [f"limits.{field.name}" for field in dataclasses.fields(LimitsSettings)]
    names += ["control.stop_action", "control.image_timeout_s", "control.frozen_image_s", "control.inference_timeout_s"]
    assert [name for name in names if f"`{name}`" not in page] == []

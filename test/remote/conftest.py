"""The plain reason why nothing here runs where the extra is missing."""

from __future__ import annotations

import pytest

pytest.importorskip("websockets", reason="the extra `remote` is not installed")

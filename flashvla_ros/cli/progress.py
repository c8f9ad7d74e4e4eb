"""How often a bar of progress is drawn: rarely where it goes to a file or a pipe, and never by a short command."""

from __future__ import annotations

import sys

INTERVAL_S = 0.5 if sys.stderr.isatty() else 10.0

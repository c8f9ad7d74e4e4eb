"""Options of commands that count something."""

from __future__ import annotations

import argparse


def count(text: str) -> int:
    """Read a number of things of which there may be none."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, 0 or more, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    """Read a number of things of which there must be one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)

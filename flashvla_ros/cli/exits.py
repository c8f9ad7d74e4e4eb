"""How a command ends: its exit codes, and the one line that an error becomes."""

from __future__ import annotations

import sys
from collections.abc import Callable

from flashvla_ros.core.errors import FlashVLAError

EXIT_DIFFERENT = 1  # a comparison failed
EXIT_USAGE = 2
EXIT_INTERRUPTED = 128 + 2  # as a shell reports SIGINT
EXIT_BROKEN_PIPE = 128 + 13


def exit_code(work: Callable[[], object], interrupted: str = "") -> int:
    """Run a module's main work; return 0, or 2 after an error that the user can mend, or 130 after Ctrl-C.

    Args:
        work: What to run.
        interrupted: Line to print after Ctrl-C: how to go on.
    """
    try:
        work()
    except FlashVLAError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        if interrupted:
            print(f"interrupted: {interrupted}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0

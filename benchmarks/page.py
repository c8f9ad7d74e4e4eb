"""Fill a page with the results it names: ``python -m benchmarks.page docs/speed.md``.

What stands between ``<!-- results FILE -->`` and ``<!-- end -->`` is replaced by the tables of that file, whose path is
relative to the page. So no figure on the page was typed.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from flashvla_ros.bench.tables import markdown

from flashvla_ros.cli.results import read_results
from flashvla_ros.core.errors import FlashVLAError

_BLOCK = re.compile(r"(<!-- results (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, folder: Path) -> str:
    """Return the text of a page in `folder` with every block of results made anew.

    Raises:
        FlashVLAError: A file cannot be read, or the page names none.
    """
    text, count = _BLOCK.subn(lambda block: f"{block[1]}{markdown(read_results(folder / block[2]))}\n{block[3]}", text)
    if not count:
        raise FlashVLAError("the page names no results: put <!-- results FILE --> and <!-- end --> where they belong")
    return text


def main() -> int:
    """Rewrite the pages in place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", type=Path, nargs="+", metavar="PAGE")
    try:
        for page in parser.parse_args().pages:
            page.write_text(filled(page.read_text(encoding="utf-8"), page.parent), encoding="utf-8")
    except (FlashVLAError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

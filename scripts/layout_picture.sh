#!/usr/bin/env bash
# Draws docs/images/layout.png: a recording of the demo in Lichtblick, with config/foxglove.json as its layout.
#   scripts/layout_picture.sh ADDRESS [FILE.mcap]
# ADDRESS is of a Lichtblick that runs, such as http://localhost:8080; any web server will do for what
# `yarn web:build:prod` in its sources leaves in web/.webpack. It needs chromium, and `pip install playwright`.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/${VENV:-.venv}/bin:$PATH
address=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
bag=${2:-$folder/run/run.mcap}
if [ $# -lt 2 ]; then
    # Not by `bringup --record`, which leaves the overlay out.
    export ROS_DOMAIN_ID=${ROS_DOMAIN_ID:-77} ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST
    flashvla-ros record "$folder/run" --exclude "" &
    flashvla-ros bringup --episodes 1 --lock-step
    kill -TERM $!
    wait $!
fi
python - "$address" "$bag" "$(command -v chromium)" <<'END'
import json
import sys
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import sync_playwright

address, bag, chromium = sys.argv[1:]
data = Path(bag).read_bytes()
layout = json.loads(Path("config/foxglove.json").read_text(encoding="utf-8"))
# The page sets its default layout, which is empty, before it starts.
keep = f"Object.defineProperty(globalThis, 'LICHTBLICK_SUITE_DEFAULT_LAYOUT', {{value: {json.dumps(layout)}}})"


def send(route):
    """The recording, in the parts that are asked for."""
    start, _, end = route.request.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")
    part = data[int(start) : int(end) + 1 if end else None]
    headers = {"accept-ranges": "bytes", "access-control-allow-origin": "*"}
    route.fulfill(status=206 if start != "0" or end else 200, headers=headers, body=part)


with sync_playwright() as play:
    # Software draws the three-dimensional view where there is no GPU.
    browser = play.chromium.launch(executable_path=chromium, args=["--enable-unsafe-swiftshader"])
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.add_init_script(keep)
    page.context.route("**/run.mcap", send)
    page.goto(f"{address}/?{urlencode({'ds': 'remote-file', 'ds.url': f'{address}/run.mcap', 'openIn': 'web'})}")
    page.wait_for_timeout(60_000)
    page.screenshot(path="docs/images/layout.png")
END

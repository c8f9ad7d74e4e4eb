#!/usr/bin/env bash
# Draws docs/images/layout.png: config/foxglove.json in Lichtblick. `scripts/layout_picture.sh WEB [BAG]`
# WEB is a folder with Lichtblick's web program, as its container serves it. Needs chromium, playwright and
# rangehttpserver, a server that can be asked for a part of a file.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/${VENV:-.venv}/bin:$PATH
web=$1
folder=$(mktemp -d)
server=
trap 'rm -rf "$folder"; [ -z "$server" ] || kill "$server"' EXIT
bag=${2:-$folder/run}
if [ $# -lt 2 ]; then
    python -m flashvla_ros record "$bag" --exclude '^$' &  # with the overlay, which is left out otherwise
    recorder=$!
    python -m flashvla_ros bringup --episodes 1
    kill -INT "$recorder"
    wait "$recorder"
fi
cp -r "$web" "$folder/web"
cp "$bag"/*.mcap "$folder/web/run.mcap"
# As Lichtblick's own container does it: the page starts with the layout that stands in place of a comment.
address=$(python - "$folder/web" <<'END'
import datetime
import json
import sys
from pathlib import Path

from mcap.reader import make_reader

web = Path(sys.argv[1])
page = (web / "index.html").read_text()
layout = json.dumps(json.loads(Path("config/foxglove.json").read_text()))
(web / "index.html").write_text(page.replace("/*LICHTBLICK_SUITE_DEFAULT_LAYOUT_PLACEHOLDER*/", layout))
with (web / "run.mcap").open("rb") as file:
    steps = [message.log_time for _, _, message in make_reader(file).iter_messages(["/flashvla/gate"])]
moment = datetime.datetime.fromtimestamp(1e-9 * steps[2 * len(steps) // 3], datetime.timezone.utc)
time = moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
print(f"http://127.0.0.1:8099/?ds=remote-file&ds.url=http://127.0.0.1:8099/run.mcap&time={time}")
END
)
(cd "$folder/web" && exec python -m RangeHTTPServer 8099 >/dev/null 2>&1) &
server=$!
sleep 2
python - "$address" docs/images/layout.png "$(command -v chromium)" <<'END'
import sys

from playwright.sync_api import sync_playwright

with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=sys.argv[3], args=["--no-sandbox", "--enable-unsafe-swiftshader"])
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.goto(sys.argv[1])
    page.wait_for_timeout(45_000)  # for the recording, and for what is drawn on the CPU
    page.keyboard.press("[")  # hides the panel on the left
    page.wait_for_timeout(3000)
    page.screenshot(path=sys.argv[2])
END

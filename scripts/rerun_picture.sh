#!/usr/bin/env bash
# Draws docs/images/rerun.png: a recording of the demo in Rerun's own viewer. `scripts/rerun_picture.sh [BAG]`
# Without a screen it needs xvfb and a Vulkan driver; Debian's mesa-vulkan-drivers draws on the CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/${VENV:-.venv}/bin:$PATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
bag=${1:-$folder/run}
[ $# -gt 0 ] || python -m flashvla_ros bringup --episodes 1 --lock-step --record "$bag"
python -m flashvla_ros view "$bag" --save "$folder/run.rrd"
# A screen larger than the window: the pointer rests in its middle, and would point at something.
screen=(xvfb-run -a -s "-screen 0 4000x2400x24")
[ -z "${DISPLAY:-}" ] || screen=()
"${screen[@]}" rerun "$folder/run.rrd" --window-size 1400x875 --screenshot-to "$folder/shot.png"
python - "$folder/shot.png" docs/images/rerun.png <<'END'
import sys
import cv2

picture = cv2.resize(cv2.imread(sys.argv[1]), (1400, 875), interpolation=cv2.INTER_AREA)
cv2.imwrite(sys.argv[2], picture, (cv2.IMWRITE_PNG_COMPRESSION, 9))
END

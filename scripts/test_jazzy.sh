#!/usr/bin/env bash
# The tests that meet ROS 2, on Jazzy's rclpy from wheels: scripts/test_jazzy.sh [pytest's arguments]
#
# Works on a copy of the tree in DIR (a new folder in /tmp), because a tree holds messages compiled for one ROS 2 only.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${DIR:-$(mktemp -d)}
mkdir -p "$dir"
git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from=- | tar --extract --directory "$dir"
cd "$dir"
unset PYTHONPATH
VENV=.venv ROS_WHEELS=requirements/jazzy.txt scripts/setup.sh
exec .venv/bin/python -m pytest "${@:-test/nodes}"

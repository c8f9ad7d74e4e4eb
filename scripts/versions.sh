#!/usr/bin/env bash
# The model's tests at both ends of every version range in setup.cfg: scripts/versions.sh [oldest|newest] …
#
# Each end gets a virtual environment of its own in DIR (a new folder in /tmp), with every package at the least version
# that setup.cfg allows, or at the newest that pip finds below its upper bound. EXTRA adds requirements that are stricter,
# such as EXTRA='torch==2.13.0' where only large wheels of another torch can be had. No ROS 2 is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
base=${PYTHON:-python3} dir=${DIR:-$(mktemp -d)}
model='transformers torch numpy opencv-python-headless tokenizers safetensors scipy'
read -ra extra <<<"${EXTRA:-}"

# requirements END: one line a package of setup.cfg, pinned to its least version or left as it is.
requirements() {
    "$base" - "$1" <<'PYTHON'
import configparser
import re
import sys

config = configparser.ConfigParser()
config.read("setup.cfg")
for line in config["options"]["install_requires"].split():
    name, least = re.fullmatch(r"([\w-]+)>=([\d.]+)(?:,.*)?", line).groups()
    print(f"{name}=={least}.*" if least.count(".") < 2 else f"{name}=={least}") if sys.argv[1] == "oldest" else print(line)
PYTHON
}

failed=0
for end in "${@:-oldest newest}"; do
    for each in $end; do
        "$base" -m venv "$dir/$each"
        requirements "$each" >"$dir/$each.txt"
        "$dir/$each/bin/pip" install -q --upgrade -r "$dir/$each.txt" ${extra[@]+"${extra[@]}"} \
            pytest pytest-timeout hypothesis
        printf '== %s: ' "$each"
        # shellcheck disable=SC2086
        "$dir/$each/bin/python" -c "
import importlib.metadata as m, sys
print(', '.join(f'{name} {m.version(name)}' for name in sys.argv[1:]))" $model
        PYTHONPATH=$PWD "$dir/$each/bin/python" -m pytest -q -p no:cacheprovider test/vla test/parity || failed=1
    done
done
exit "$failed"

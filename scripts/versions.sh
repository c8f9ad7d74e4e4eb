#!/usr/bin/env bash
# The model's tests at both ends of every version range in setup.cfg: scripts/versions.sh [oldest|newest] …
#
# Each end gets a virtual environment of its own in DIR (a new folder in /tmp), with every package in the least release
# that setup.cfg allows, or in the newest that pip finds below its upper bound. Requirements in EXTRA replace those of
# setup.cfg, such as EXTRA='torch==2.13.0' where other releases of torch come in large wheels only. No ROS 2 is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
base=${PYTHON:-python3} dir=${DIR:-$(mktemp -d)}
model='transformers torch numpy opencv-python-headless tokenizers safetensors scipy'
read -ra extra <<<"${EXTRA:-}"

# requirements END: one line a package of setup.cfg, pinned to its least version or left as it is.
requirements() {
    "$base" - "$1" "${extra[@]%%[=<>]*}" <<'PYTHON'
import configparser
import re
import sys

config = configparser.ConfigParser()
config.read("setup.cfg")
for line in config["options"]["install_requires"].split():
    name, least = re.fullmatch(r"([\w-]+)>=([\d.]+)(?:,.*)?", line).groups()
    if name in sys.argv[2:]:
        continue
    print(f"{name}=={least}{'.*' if least.count('.') < 2 else ''}" if sys.argv[1] == "oldest" else line)
PYTHON
}

[ $# -gt 0 ] || set -- oldest newest
failed=0
for end in "$@"; do
    "$base" -m venv "$dir/$end"
    requirements "$end" >"$dir/$end.txt"
    "$dir/$end/bin/pip" install -q --upgrade -r "$dir/$end.txt" ${extra[@]+"${extra[@]}"} \
        pytest pytest-timeout hypothesis
    printf '== %s: ' "$end"
    # shellcheck disable=SC2086  # one argument a package
    "$dir/$end/bin/python" -c "
import importlib.metadata, sys
print(', '.join(f'{name} {importlib.metadata.version(name)}' for name in sys.argv[1:]))" $model
    PYTHONPATH=$PWD "$dir/$end/bin/python" -m pytest -q -p no:cacheprovider test/vla test/parity || failed=1
done
exit "$failed"

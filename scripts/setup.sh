#!/usr/bin/env bash
# What `make setup` does: Debian packages, a virtual environment, wheels, compiled messages. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}

say() { printf '\n\033[1m[setup] %s\033[0m\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    die "no Python 3.11 or newer found; install one, or name it: make setup PYTHON=/path/to/python3"
}

missing_packages() {
    local libraries
    libraries=$(/sbin/ldconfig -p)
    grep -q 'libEGL\.so\.1' <<<"$libraries" || echo libegl1
    compgen -G '/usr/lib*/dri/swrast_dri.so' >/dev/null || compgen -G '/usr/lib/*/dri/swrast_dri.so' >/dev/null || echo libgl1-mesa-dri
    command -v c++ >/dev/null || echo g++
    "$python" -c 'import ensurepip' 2>/dev/null || echo python3-venv
}

install_packages() {
    local root=()
    [ "$(id -u)" = 0 ] || root=(sudo -n)
    command -v apt-get >/dev/null && "${root[@]}" true 2>/dev/null || return 1
    "${root[@]}" apt-get update -q && "${root[@]}" apt-get install -q -y --no-install-recommends "$@"
}

python=$(find_python)
ros_is_sourced() { [ -n "${ROS_DISTRO:-}" ] && "$python" -c 'import rclpy' 2>/dev/null; }

say "Debian packages: OpenGL without a display, and a C++ compiler"
mapfile -t missing < <(missing_packages)
if [ ${#missing[@]} -gt 0 ] && ! install_packages "${missing[@]}" </dev/null; then
    note="these packages are missing and could not be installed from here: sudo apt-get install ${missing[*]}"
    [[ " ${missing[*]} " =~ \ (g\+\+|python3-venv)\  ]] && die "$note"
    say "$note (the simulated robot needs them; everything else works)"
fi

if ros_is_sourced; then
    say "Virtual environment in $venv, beside ROS 2 $ROS_DISTRO"
    options=(--system-site-packages)
    ros=()
else
    [ -z "${ROS_DISTRO:-}" ] || die "ROS 2 $ROS_DISTRO is sourced, but $python cannot import its rclpy; use its own Python"
    [ "$(uname -sm)" = "Linux x86_64" ] || die "ROS 2 wheels are for Linux on x86-64; here, install ROS 2 and source it"
    say "Virtual environment in $venv, with ROS 2 from wheels"
    options=()
    ros=(-r "${ROS_WHEELS:-requirements/ros.txt}")
fi
# Another interpreter, or another ROS 2, has other compiled parts: begin anew.
made_for_another() { compgen -G "$venv/ready-*" >/dev/null && ! [ -e "$venv/ready-${ROS_DISTRO:-wheels}" ]; }
if made_for_another || ! "$venv/bin/python" -c '' 2>/dev/null; then
    options+=(--clear)
fi
"$python" -m venv "${options[@]}" "$venv"

say "Wheels"
constraints=$venv/constraints.txt
cp requirements/constraints.txt "$constraints"
if ros_is_sourced; then # whose compiled modules fit its own NumPy
    sed -i -E '/^(numpy|opencv-python-headless)==/d' "$constraints"
    "$python" -c 'import numpy; print(f"numpy=={numpy.__version__}")' >>"$constraints"
fi
# Of two hundred packages few modules are ever imported: Python compiles those when it first does.
pip=("$venv/bin/python" -m pip --disable-pip-version-check)
"${pip[@]}" install --no-compile --upgrade -c "$constraints" "pip>=24" "setuptools>=70,<80" wheel "${ros[@]}"

say "flashvla_ros, with its messages compiled"
"${pip[@]}" install --no-compile --no-build-isolation -c "$constraints" --editable ".[sim,bags,remote,test]"
say "Ready: make bringup, make test"

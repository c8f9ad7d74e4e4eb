#!/usr/bin/env bash
# Everything that this package measures on one GPU: scripts/gpu_table.sh [OUT] [PART …]
#
# Writes JSON and plots to OUT (benchmarks/results) and prints the tables; python -m benchmarks.report then shows them
# all. What does not fit before LIMIT seconds is cut off or left out, and named: a second call can make those parts
# alone. With MODEL=tiny DEVICE=cpu it is a trial of itself on any machine.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}
shift || true
parts='speed ics tests changes growth oft univla sdpa compiled'
# shellcheck disable=SC2086  # one argument a part
[ $# -gt 0 ] || set -- $parts
model=${MODEL:-7b} device=${DEVICE:-cuda} limit=${LIMIT:-590}
python=${PYTHON:-${VENV:-.venv}/bin/python}
name=${model}-$("$python" -c "
import torch
print('cpu' if '$device' == 'cpu' else torch.cuda.get_device_name(0).lower().replace(' ', '-'))") || exit 2
subject=$model missing=()
weights=$(mktemp -d)
trap 'rm -rf "$weights"' EXIT

# step MOST_SECONDS COMMAND…
step() {
    local most=$1 left=$((limit - SECONDS))
    shift
    if ((left < 10)); then
        printf '== left out, %s s are over\n' "$limit"
        return 1
    fi
    timeout "$((most < left ? most : left))" "$@" || {
        printf '== failed or cut off, exit code %s\n' "$?"
        return 1
    }
}

bench() { step "$1" "$python" -m flashvla_ros bench --model "$subject" --device "$device" "${@:2}"; }

# Random weights of another architecture lie in a folder: its parts are files of their own.
of_architecture() {
    subject=$weights/$1
    step 150 "$python" -m flashvla_ros.vla.random_checkpoint --size "$model" --architecture "$1" "$subject" &&
        bench 150 --set model.unnorm_key=random_7d --only 'dense*' --only 'ics k=*' --rounds 30 --seconds 60 \
            --json "$out/speed-$name-$2.json"
    local code=$?
    rm -rf "$subject"
    subject=$model
    return "$code"
}

speed() { bench 260 --rounds 50 --seconds 120 --json "$out/speed-$name.json" --plot "$out/speed-$name.png"; }
ics() {
    step 60 "$python" -m benchmarks.ics --device "$device" --seconds 0.1 --tokens 64 256 --widths 4096 \
        --json "$out/ics-$name.json"
}
tests() { step 90 "$python" -m pytest -q test/vla -k cuda; }
changes() { step 90 "$python" -m benchmarks.changes --model "$model" --device "$device" --json "$out/changes-$name.json"; }
growth() {
    step 150 "$python" -m benchmarks.growth --size "$model" --device "$device" --seconds 60 \
        --json "$out/growth-$name.json" --plot "$out/growth-$name.png"
}
oft() { of_architecture openvla_oft oft; }
univla() { of_architecture univla univla; }
# The first part takes FlashAttention 2 where it is installed; this is the other half of that pair.
sdpa() {
    bench 60 --attention sdpa --only dense --only 'ics k=* layer 2' --rounds 20 --seconds 15 \
        --json "$out/speed-sdpa-$name.json"
}
compiled() {
    bench 120 --engine compiled --only dense --rounds 20 --seconds 15 --json "$out/speed-compiled-$name.json"
}

for part in "$@"; do
    [[ " $parts " == *" $part "* ]] || { printf 'no part %s: %s\n' "$part" "$parts" >&2; exit 2; }
done
for part in "$@"; do
    printf '\n== %s (%s s so far)\n' "$part" "$SECONDS"
    "$part" || missing+=("$part")
done
printf '\n%s s; missing or incomplete: %s\n' "$SECONDS" "${missing[*]:-nothing}"
exit $((${#missing[@]} > 0))

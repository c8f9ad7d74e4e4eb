#!/usr/bin/env bash
# Everything that this package measures on one GPU, in under ten minutes: scripts/gpu_table.sh [OUT]
#
# Writes JSON and plots to OUT (benchmarks/results) and prints the tables; python -m benchmarks.report then shows them
# all. What does not fit before LIMIT seconds is cut off or left out, and said. With MODEL=tiny DEVICE=cpu it
# is a trial of itself on any machine.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}
model=${MODEL:-7b} device=${DEVICE:-cuda} limit=${LIMIT:-590}
python=${PYTHON:-${VENV:-.venv}/bin/python}
name=${model}-$("$python" -c "
import torch
print('cpu' if '$device' == 'cpu' else torch.cuda.get_device_name(0).lower().replace(' ', '-'))") || exit 2
failed=0

# step NAME MOST_SECONDS COMMAND…
step() {
    local what=$1 left=$((limit - SECONDS)) most=$2
    shift 2
    if ((left < 10)); then
        printf '\n== %s: left out, %s s are over\n' "$what" "$limit"
        failed=$((failed + 1))
        return
    fi
    printf '\n== %s (%s s so far)\n' "$what" "$SECONDS"
    timeout "$((most < left ? most : left))" "$@" || {
        printf '== %s: failed or cut off, exit code %s\n' "$what" "$?"
        failed=$((failed + 1))
    }
}

bench() { step "$1" "$2" "$python" -m flashvla_ros bench --model "$model" --device "$device" "${@:3}"; }

bench "every configuration" 260 --rounds 50 --seconds 120 \
    --json "$out/speed-$name.json" --plot "$out/speed-$name.png"
step "score by ICS" 60 "$python" -m benchmarks.ics --device "$device" --seconds 0.1 \
    --tokens 64 256 --widths 4096 --json "$out/ics-$name.json"
step "tests on the GPU" 90 "$python" -m pytest -q test/vla -k cuda
step "growth" 150 "$python" -m benchmarks.growth --size "$model" --device "$device" --seconds 60 \
    --json "$out/growth-$name.json" --plot "$out/growth-$name.png"
# The first command takes FlashAttention 2 where it is installed; this is the other half of that pair.
bench "SDPA" 60 --attention sdpa --only dense --only 'ics k=* layer 2' --rounds 20 --seconds 15 \
    --json "$out/speed-sdpa-$name.json"
bench "torch.compile" 120 --engine compiled --only dense --rounds 20 --seconds 15 \
    --json "$out/speed-compiled-$name.json"
printf '\n%s s; %s of 6 parts are missing or incomplete\n' "$SECONDS" "$failed"
exit $((failed > 0))

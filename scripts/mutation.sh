#!/usr/bin/env bash
# Change the code in small ways and see whether a test notices:
#   scripts/mutation.sh [NAME_OF_MUTANTS*]...          such as 'flashvla_ros.control.motion*'; all of them take hours
#   scripts/mutation.sh --sample COUNT [--seed SEED]   as many from each of the four rooms
# Needs mutmut, which is no dependency: pip install mutmut==3.8.1. Works in a copy of the tree, build/mutation;
# there `mutmut results` lists the survivors and `mutmut show NAME` what was changed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
copy=build/mutation sample=0 seed=0
while [[ "${1:-}" == --* ]]; do
    case $1 in
        --sample) sample=$2 ;;
        --seed) seed=$2 ;;
        *) echo "mutation.sh: unknown option $1" >&2; exit 2 ;;
    esac
    shift 2
done
mkdir -p "$copy"
cp -r --preserve=timestamps flashvla_ros test docs config models launch benchmarks training scripts package.xml README.md setup.cfg "$copy"
# Without the fuzz: every mutant of a step would play it to its end.
rm -f "$copy/test/control/test_fuzz.py"
# mutmut puts its own tree first on the path.
grep -v '^pythonpath' pyproject.toml >"$copy/pyproject.toml"
cat >>"$copy/pyproject.toml" <<'TOML'

[tool.mutmut]
source_paths = ["flashvla_ros"]
only_mutate = ["flashvla_ros/core/*", "flashvla_ros/gate/*", "flashvla_ros/control/*", "flashvla_ros/messages/*"]
also_copy = ["benchmarks", "training", "docs", "config", "models", "launch", "package.xml", "README.md"]
pytest_add_cli_args_test_selection = ["test/core", "test/gate", "test/control", "test/messages"]
use_git_change_detection = false
timeout_constant = 30.0
timeout_multiplier = 3.0
TOML
cd "$copy"
if [ "$sample" -gt 0 ]; then # the mutants are made, and what each test reaches is learned, by a run of a few
    "$python" -m mutmut run --max-children 1 'flashvla_ros.control.mailbox*'
    mapfile -t names < <("$python" scripts/mutation_sample.py "$sample" "$seed")
    set -- --max-children 1 "${names[@]}"
fi
exec "$python" -m mutmut run "$@"

#!/usr/bin/env bash
# Rehearses the programs on a CPU with the Python, torch and packages of the GPU machine's image, from the last commit:
#
#   tests/benchmarks/gpu/rehearse.sh FOLDER [PHOTOS]
#
# FOLDER lies outside the project and keeps the environment (6 GB with torch's CUDA libraries) for the next time. Not in
# CI: it takes a quarter of an hour on two cores.
set -euo pipefail
folder=$(mkdir -p "${1:?"usage: rehearse.sh FOLDER [PHOTOS]"}" && cd "$1" && pwd)
photos=${2:+$(cd "$2" && pwd)}
project=$(git rev-parse --show-toplevel)
python=${PYTHON312:-python3.12}
absent=(pydantic pydantic-core annotated-types typing-inspection)  # others' dependencies; the image lacks them

if ! [ -e "$folder/environment/.complete" ]; then
  "$python" -m venv --clear "$folder/environment"
  "$folder/environment/bin/python" -m pip install --quiet --no-compile -r "$project/tests/benchmarks/gpu/image.txt"
  "$folder/environment/bin/python" -m pip uninstall --quiet --yes "${absent[@]}"
  touch "$folder/environment/.complete"
fi
PATH=$folder/environment/bin:$PATH

rm -rf "$folder/project" "$folder/work" "$folder/out" "$folder/packages"
git clone --quiet "$project" "$folder/project"
cd "$folder/project"
python3 -m tests.benchmarks.gpu.bundle ${photos:+--photos "$photos"}

export CUDA_VISIBLE_DEVICES='' PACKAGES=$folder/packages
failed=()
run() {
  echo "=== $*"
  .gpu/run.sh "$@" --tiny --work "$folder/work" || failed+=("$1")
}
run first "$folder/out" --limit 900
run measure "$folder/out"
run train "$folder/out" 600
if ((${#failed[@]})); then
  echo "failed: ${failed[*]}; see $folder/out" >&2
  exit 1
fi
echo "All programs ran with $(python3 --version) and torch $(python3 -c 'import torch; print(torch.__version__)')."

#!/usr/bin/env bash
# On the machine with the GPU, from the project's folder: `.gpu/run.sh first|measure|train OUT [...]` runs a program of
# tests/benchmarks/gpu, `.gpu/run.sh -m MODULE [...]` any module, with the packages and photos that lie beside this file.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
packages=${PACKAGES:-${TMPDIR:-/tmp}/flowmapsr-gpu/packages}
if ! [ -e "$packages/.complete" ]; then
  python3 - "$here/packages.tar.xz" "$packages" <<'PYTHON'
import sys
import tarfile
from pathlib import Path

with tarfile.open(sys.argv[1]) as packed:
    packed.extractall(sys.argv[2], filter="data")
Path(sys.argv[2], ".complete").touch()
PYTHON
fi
if [ -d "$here/photos" ]; then export PHOTOS=${PHOTOS:-$here/photos}; fi
export PYTHONPATH=$packages:$PWD PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
export NO_ALBUMENTATIONS_UPDATE=1 HF_HUB_OFFLINE=1 DO_NOT_TRACK=1
case $1 in
  -*) exec python3 "$@" ;;
  *) exec python3 -m tests.benchmarks.gpu "$@" ;;
esac

#!/usr/bin/env bash
# Benchmarks and checks on a machine with one or more GPUs and no network, within ten minutes.
#
#     benchmarks/gpu.sh [FOLDER]          FOLDER takes the results; default benchmarks/results
#
# Needs Python >= 3.11 with torch, transformers and accelerate. What else is missing is taken from wheels/, which `make wheels` fills on a
# machine with a network, for Python 3.12; nothing is installed outside of a temporary folder. The first GPU is measured; with several, scaling, parity and
# the quickstarts use all of them.
#
#     PYTHON=…          the interpreter; default python3
#     BENCH_TOY=1       at a size for the CPU, as it also runs where there is no GPU
#     BENCH_SECONDS=…   for all of it, from the start of this script; default 570
#     BENCH_PARTS=…     some of the parts, by their names in benchmarks/gpu.py, separated by commas
#     NANOGPT=…         a checkout of nanoGPT, whose train.py then takes part; Lightning Fabric does where it is installed
set -euo pipefail

BENCH_BEGAN=$(date +%s)
export BENCH_BEGAN

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
results=$(mkdir -p "${1:-$root/benchmarks/results}" && cd "${1:-$root/benchmarks/results}" && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# conf/ and launch/ are parts of the package, which an installation would put there; here links do.
mkdir "$work/tree" "$work/site"
cp -r "$root"/{trainer,conf,launch,tests,benchmarks,pyproject.toml} "$work/tree/"
ln -s ../conf "$work/tree/trainer/conf"
ln -s ../launch "$work/tree/trainer/launch"

"$python" "$root/benchmarks/wheels.py" --into "$work/site" "$root/wheels"

export PYTHONPATH="$work/tree:$work/site"
export TRAINER_CACHE="${TRAINER_CACHE:-$work/cache}"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=true PYTHONUNBUFFERED=1
# The copy is no repository.
BENCH_COMMIT=$(cd "$root" && "$python" -c 'from benchmarks import records; print(records.commit())')
export BENCH_COMMIT
cd "$work/tree"
"$python" benchmarks/gpu.py ${BENCH_PARTS:+--parts "$BENCH_PARTS"} "$results"

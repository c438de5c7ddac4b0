#!/usr/bin/env bash
# Runs the linter, the type checker and the tests, in the environment .venv, which it creates.
# Usage: scripts/test.sh [--fast] [pytest options]
# --fast runs only the essential tests, in less than two minutes: model, search, data and files.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment "[dev,ct2,hf,ja,legacy,onnx]"

.venv/bin/ruff check .
.venv/bin/mypy
essentials=(
  tests/config tests/artifacts tests/data
  tests/model/test_{attention,layers,linear,one_transformer,transformer,ways_to_attend}.py
  tests/decode/test_{search,steps,translator}.py
  tests/train/test_{cross_entropy,gradients,objective,optimizer,stopping}.py
  tests/evaluation/test_metrics.py tests/test_{files,layering,log,readme,numerics,safe_loading}.py
)
if [ "${1:-}" = --fast ]; then
  shift
  set -- "${essentials[@]}" "$@"
fi
# One thread per worker, because PyTorch's threads and the test workers would compete for the cores.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n "${TEST_WORKERS:-2}" --dist worksteal \
    -m "not slow and not gpu and not net" "$@"

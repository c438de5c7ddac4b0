#!/usr/bin/env bash
# Everything that must hold: lint, types, tests. Makes its own environment. Usage: scripts/test.sh [pytest options]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment "[dev,ct2,hf,ja,legacy,onnx]"

.venv/bin/ruff check .
.venv/bin/mypy
# One thread a worker: PyTorch's threads and the test workers would otherwise fight for the cores.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n "${TEST_WORKERS:-2}" -m "not slow and not gpu and not net" "$@"

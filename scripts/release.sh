#!/usr/bin/env bash
# Builds a release into dist/ and proves it: sdist and wheel are built and checked, the wheel is installed into a fresh
# environment outside the checkout, and the quickstart's configuration trains, scores and reports from there.
# Usage: scripts/release.sh [key.sub=value ...]   (overrides for the training, to try the script quickly)
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
. scripts/environment.sh
make_environment "[release]"

echo "== Building"
rm -rf dist build ./*.egg-info
.venv/bin/python -m build --outdir dist . > .venv/build.log 2>&1 || { tail -30 .venv/build.log >&2; exit 1; }
.venv/bin/python -m twine check --strict dist/*
wheel=$(ls dist/*.whl)
version=$(.venv/bin/mt --version)
[ "mt $(basename "$wheel" | cut -d- -f2)" = "$version" ] || { echo "$wheel is not $version" >&2; exit 1; }
grep -q "^## ${version#mt } " CHANGELOG.md || { echo "CHANGELOG.md has no section ${version#mt }" >&2; exit 1; }

echo "== Installing the wheel into a fresh environment"
outside=$(mktemp -d)
trap 'rm -rf "$outside"' EXIT
"${PYTHON:-python3}" -m venv "$outside/venv"
"$outside/venv/bin/pip" install --quiet --constraint constraints.txt "$wheel"
cp -r configs "$outside/configs"
mkdir "$outside/data" && cp -r data/sample "$outside/data/sample"
cd "$outside"
venv/bin/python - "$root" <<'EOF'
import sys
from pathlib import Path

import mt

assert not Path(mt.__file__).is_relative_to(sys.argv[1]), f"{mt.__file__} is in the checkout, not in the wheel"
EOF

echo "== Training, scoring and reporting with the wheel alone"
venv/bin/mt --version
venv/bin/mt train configs/quickstart.yaml cache_dir=cache "$@"
venv/bin/mt evaluate runs/quickstart
head -3 data/sample/test.de | venv/bin/mt translate runs/quickstart
venv/bin/mt report runs/quickstart -o report.html
grep -q '<svg' report.html || { echo "report.html shows no curves" >&2; exit 1; }
echo
ls -l "$root"/dist

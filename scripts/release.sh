#!/usr/bin/env bash
# Builds a release into dist/ and tests it: builds and checks the sdist and the wheel, installs the
# wheel into a fresh environment outside the checkout, and from there trains, scores and reports
# with the quickstart's configuration.
#
# Usage: scripts/release.sh [key.sub=value ...]
# The overrides go to the training, to try out the script in less time.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
. scripts/environment.sh
make_environment "[release]"

echo "== Building"
rm -rf dist build ./*.egg-info
.venv/bin/python -m build --outdir dist . > .venv/build.log 2>&1 || {
    tail -30 .venv/build.log >&2
    exit 1
}
.venv/bin/python -m twine check --strict dist/*
wheel=$(ls dist/*.whl)
version=$(.venv/bin/mt --version)
fail() {
    echo "$1" >&2
    exit 1
}
[ "mt $(basename "$wheel" | cut -d- -f2)" = "$version" ] || fail "$wheel is not $version"
grep -q "^## ${version#mt } " CHANGELOG.md || fail "CHANGELOG.md has no section ${version#mt }"

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

if Path(mt.__file__).is_relative_to(sys.argv[1]):
    sys.exit(f"{mt.__file__} is in the checkout, not in the wheel")
EOF

echo "== Training, scoring and reporting with the wheel alone"
venv/bin/mt --version
venv/bin/mt train configs/quickstart.yaml cache_dir=cache "$@"
venv/bin/mt evaluate runs/quickstart
head -3 data/sample/test.de | venv/bin/mt translate runs/quickstart
venv/bin/mt report runs/quickstart -o report.html
venv/bin/python - <<'EOF'
import json
import re
from pathlib import Path

page = Path("report.html").read_text(encoding="utf-8")
data = json.loads(re.search(r'<script [^>]* id="data">(.*?)</script>', page, re.DOTALL)[1])
assert data["runs"][0]["curves"]["train"]["loss"], "report.html has no curves"
assert data["tests"][0]["systems"][0]["scores"], "report.html has no scores"
assert "createElementNS" in page, "report.html has no script that draws it"
EOF
echo
ls -l "$root"/dist

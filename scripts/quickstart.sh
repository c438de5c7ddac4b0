#!/usr/bin/env bash
# From nothing to a scored translation model: creates the environment, trains German to English on
# the sample corpus in data/sample, and scores the test set.
# Usage: scripts/quickstart.sh [key.sub=value ...]
# Takes about ten minutes on two CPU cores, mostly for installing and training.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
make_environment

run=runs/quickstart
.venv/bin/mt train configs/quickstart.yaml "$@"

echo
echo "== Scores on data/sample/test"
.venv/bin/mt evaluate "$run" --src data/sample/test.de --ref data/sample/test.en \
    -o "$run/test.hyp.en"

echo
echo "== Ten translations"
.venv/bin/python - "$run/test.hyp.en" <<'EOF'
import sys
from pathlib import Path

names = ("data/sample/test.de", "data/sample/test.en", sys.argv[1])
texts = [Path(name).read_text(encoding="utf-8").split("\n") for name in names]
for src, ref, hyp in list(zip(*texts))[:1000:100]:
    print(f"source      {src}\nreference   {ref}\ntranslation {hyp}\n")
EOF
echo "The model is $run/checkpoints/best. Try it:"
echo "  echo 'Der kleine Hund schläft.' | .venv/bin/mt translate $run"

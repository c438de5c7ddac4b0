#!/usr/bin/env bash
# Measures everything that needs a GPU: training and decoding speed, the training speed of a plain
# Hugging Face loop on the same batches, and the GPU tests. Takes less than nine minutes, needs no
# network, and installs nothing.
#
# Usage: [OUT=FOLDER] scripts/gpu.sh [DATA] [WHEELS]
#   DATA    folder with {train,val,test_2016_flickr}.{de,en}.gz of Multi30k (default: data/multi30k)
#   WHEELS  folder with missing packages, as .whl files or unpacked (default: wheels)
# The results are summary.txt, results.jsonl, environment.json and log.txt in OUT (default:
# gpu-results). PYTHON is the interpreter; it needs torch 2.11 or later, and pydantic.
# MT_GPU_DEVICE=cpu tries out everything but the tests on a CPU, with small sizes.
set -uo pipefail
out=$(realpath -m "${OUT:-gpu-results}")
data=$(realpath -m "${1:-$(dirname "$0")/../data/multi30k}")
wheels=$(realpath -m "${2:-wheels}")
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} device=${MT_GPU_DEVICE:-cuda}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$out"
rm -f "$out"/{summary.txt,results.jsonl,environment.json,log.txt}

for wheel in "$wheels"/*.whl; do  # unpacked, because compiled modules need real files
    [ ! -e "$wheel" ] || "$python" -m zipfile -e "$wheel" "$scratch/site"
done
export PYTHONPATH="$PWD:$scratch/site:$wheels${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

part() {  # NAME SECONDS
    echo "== $1" | tee -a "$out/log.txt"
    timeout -k 5 $(($2 + 5)) "$python" scripts/bench/gpu.py "$1" --seconds "$2" --out "$out" \
        --scratch "$scratch" --data "$data" --device "$device" 2>&1 | tee -a "$out/log.txt"
    local code=${PIPESTATUS[0]}
    [ "$code" -eq 0 ] ||
        echo "{\"part\": \"$1\", \"problem\": \"exit $code, see log.txt\"}" >> "$out/results.jsonl"
}

part environment 15
part train 220
part decode 95
part huggingface 75
part tests 105
part summary 10

#!/usr/bin/env bash
# Says what of the trainer works on this machine's NVIDIA card, and how fast, in ten minutes.
#
#   bash benchmarks/gpu.sh [--minutes 10] [--out DIR] [--cpu]
#
# Needs this repository and a Python (3.11 to 3.13) that has PyTorch with CUDA; no network and nothing installed of
# ours. What is missing is reported in one line, and benchmarks/gpu_wheels.sh makes a folder of it. DIR (default:
# runs/gpu) gets results.jsonl, table.md and the steps' logs; all of them are written as it goes, so a run that is cut
# off leaves what it found. --cpu runs every step on toy sizes without a card.
#
# PYTHON   the interpreter (default: python3)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
command -v "$python" >/dev/null || {
    echo "gpu: $python is not found; name an interpreter: PYTHON=/path/to/python3 bash benchmarks/gpu.sh" >&2
    exit 2
}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -u -m benchmarks.gpu.driver "$@"

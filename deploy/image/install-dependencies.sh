#!/bin/sh
# What the gateway needs, exactly as pinned, in an environment of its own: install-dependencies.sh VENV [EXTRA]
# Reads pyproject.toml and constraints.txt beside it, so that a change of our code does not install them again.
set -eu
here=$(dirname "$0")
venv=$1
extra=${2:-}

test -x "$venv/bin/pip" || python3 -m venv "$venv"
"$venv/bin/python" - "$here/pyproject.toml" "$extra" >"$here/requirements.txt" <<'PYTHON'
import sys
import tomllib
with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
extra = project["optional-dependencies"][sys.argv[2]] if sys.argv[2] else []
print(*project["dependencies"], *extra, sep="\n")
PYTHON
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir \
    --constraint "$here/constraints.txt" --requirement "$here/requirements.txt"

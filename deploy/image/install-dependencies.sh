#!/bin/sh
# Installs the gateway's packages, each by its hash, into their own environment: install-dependencies.sh VENV LOCK
# Reads LOCK.lock beside it, so that a change of our code does not install them again.
set -eu
here=$(dirname "$0")
venv=$1

test -x "$venv/bin/pip" || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir --require-hashes --requirement "$here/$2.lock"

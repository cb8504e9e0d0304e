#!/usr/bin/env bash
# Runs deploy/check.sh in a new, minimal Debian 12 with its own mount and process namespaces.
#   deploy/check/clean_machine.sh [FOLDER]     as root, with debootstrap and a Python that has pip
# FOLDER (default /var/tmp/coe-clean-machine) holds that Debian; a second run uses it again. The checkout is read-only
# in it. It shares this machine's kernel, network, and pip's settings with the files that they name.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
machine=${1:-/var/tmp/coe-clean-machine}
readonly root machine

main() {
    [ -e "$machine/etc/debian_version" ] || debootstrap --variant=minbase bookworm "$machine" >/dev/null
    echo "a Debian $(cat "$machine/etc/debian_version") with $(find "$machine/var/lib/dpkg/info" -name '*.list' | wc -l) packages"
    python3 "$root/deploy/check/pip_settings.py" "$machine/etc/pip.conf" >"$machine/root/paths"
    cp /etc/resolv.conf /etc/hosts "$machine/etc/"
    cp -R /usr/local/share/ca-certificates "$machine/usr/local/share/" # this machine's own authorities, if it has any
    export root machine
    export -f inside show
    unshare --mount --pid --fork --propagation private bash -euo pipefail -c inside
}

# show PATH: make a path of this machine visible at the same place, a folder read-only, a file as a copy
show() {
    if [ -f "$1" ]; then
        install -D "$1" "$machine$1"
        return
    fi
    mkdir -p "$machine$1"
    mount --bind "$1" "$machine$1"
    mount -o remount,bind,ro "$machine$1"
}

inside() {
    mount --bind "$machine" "$machine"
    mount -t proc proc "$machine/proc"
    mount --rbind /sys "$machine/sys"
    mount --rbind /dev "$machine/dev"
    mount -t tmpfs tmpfs "$machine/run"
    while read -r path; do show "$path"; done <"$machine/root/paths"
    show "$root"
    mkdir -p "$machine/before"
    cd "$machine"
    pivot_root . before
    umount --lazy /before
    exec env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 "$root/deploy/check.sh"
}

main

#!/usr/bin/env bash
# The part of deploy/check.sh that runs deploy/coe.service under systemd: unit.sh FOLDER. Systemd is the first process of a
# container with the CPU image's content and no network. Leaves nothing running.
set -Eeuo pipefail
. deploy/check/report.sh

readonly folder=$1 machine=coe_unit

main() {
    configure "host: 3200MiB"
    podman rm --force $machine >/dev/null 2>&1 || true
    trap 'podman rm --force $machine >/dev/null 2>&1 || true' EXIT
    podman run --detach --name $machine --privileged --systemd=always --network none --no-healthcheck --memory 5g \
        --volume "$PWD/deploy/coe.service:/etc/systemd/system/coe.service:ro" --volume "$folder/unit:/etc/coe:ro" \
        localhost/coe-unit >/dev/null
    wait_for 60 inside systemctl is-system-running --wait
    see_it_serve
    see_confinement
    see_restart_after_kill
    see_stop
    see_mistake
}

fail() {
    printf 'check: %s\n' "$*" >&2
    inside journalctl --unit coe --no-pager --lines 20 >&2 || true
    exit 1
}
inside() { podman exec $machine "$@"; }
property() { inside systemctl show --value --property "$1" coe; }
is() { [ "$(property "$1")" = "$2" ]; }
wait_for() { # wait_for SECONDS COMMAND...
    local began=$SECONDS
    until "${@:2}" >/dev/null 2>&1; do
        [ $((SECONDS - began)) -lt "$1" ] || fail "${*:2}: not within $1 s"
        sleep 1
    done
}

# The demo without keys, on this machine's own address, with the unit's folders.
configure() {
    mkdir -p "$folder/unit"
    sed -e "s|host: 3200MiB|$1|; s|host: 0.0.0.0|host: 127.0.0.1|; /^keys:/d; s|/var/lib/coe/logs|/var/log/coe|" \
        deploy/demo-cpu/serve.yaml >"$folder/unit/serve.yaml"
}

see_it_serve() {
    local began=$SECONDS
    inside systemctl start coe
    wait_for 400 inside coe-health
    see "ready $((SECONDS - began)) s after systemctl start"
    inside coe bench http://127.0.0.1:8080/v1 --model units --requests 1 >"$folder/said" || fail "$(cat "$folder/said")"
    grep -o "1 of 1 answered in [0-9.]* s" "$folder/said"
}

see_confinement() {
    local pid user
    pid=$(property MainPID)
    user=$(inside stat -c %u "/proc/$pid")
    [ "$user" -ge 61184 ] || fail "it runs as user $user, which is no dynamic one"
    echo "user: $user, made for this start"
    expect "capabilities" "0000000000000000" "$(inside sed -n 's/^CapEff:\s*//p' "/proc/$pid/status")"
    expect "no new privileges" "1" "$(inside sed -n 's/^NoNewPrivs:\s*//p' "/proc/$pid/status")"
    expect "system calls are filtered" "2" "$(inside sed -n 's/^Seccomp:\s*//p' "/proc/$pid/status")"
    expect "root file system" "ro" "$(inside sed -n 's|^[^ ]* / [^ ]* \(r[ow]\),.*|\1|p' "/proc/$pid/mounts")"
}

see_restart_after_kill() {
    see "kill -9 of the service"
    inside sh -c "kill -9 $(property MainPID)"
    wait_for 60 is NRestarts 1
    wait_for 400 inside coe-health
    expect "restarts" 1 "$(property NRestarts)"
}

see_stop() {
    inside systemctl stop coe
    expect "stopped" inactive "$(property ActiveState)"
    expect "processes of its user left" 0 "$(inside sh -c 'stat -c %u /proc/[0-9]* 2>/dev/null' | awk '$1 >= 61184' | wc -l)"
}

see_mistake() {
    configure "host: 900GiB"
    inside systemctl start coe
    wait_for 60 is ActiveState failed # and not "activating": systemd does not restart it
    expect "exit code of a mistake" 2 "$(property ExecMainStatus)"
    inside journalctl --unit coe --no-pager --output cat | grep '^coe: '
}

main

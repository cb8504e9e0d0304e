#!/usr/bin/env bash
# The part of deploy/check.sh that runs inside a network of its own: composition.sh FOLDER. Leaves nothing running.
set -Eeuo pipefail
. deploy/check/report.sh

readonly folder=$1 here=deploy/check
readonly service=coe_coe_1
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
readonly service_image=localhost/coe-server:$version-cpu
export PATH="$folder/tools/bin:$PATH" COMPOSE_FILE=compose.yaml:compose.cpu.yaml

main() {
    ip link set lo up
    printf 'coe-a-key-given-as-a-secret' >"$folder/api-key"
    chmod 644 "$folder/api-key"
    export COE_API_KEY_FILE=$folder/api-key
    compose down --volumes >/dev/null 2>&1 || true
    trap 'compose down --volumes >/dev/null 2>&1 || true' EXIT
    see "grafana is left out: its image cannot be made from Debian's packages"
    as_documented docker compose up --detach >"$folder/up.log" 2>&1 || fail "podman-compose up: $(tail -5 "$folder/up.log")"
    echo "the service has published $(podman port $service | tr '\n' ' ')"
    wait_until_healthy
    see_user_and_file_system
    see_answers
    see_keys
    see_scrape
    see_engine_killed
    see_restart_remembers
    see_documented_commands
    take_down
    see_bad_cases
    see_gpu_steps
}

compose() { podman-compose "$@"; }

# as_documented docker compose ...: a command of docs/deploy.md, with podman-compose in place of docker compose. Images are
# not built again; only services whose image is there are started.
as_documented() {
    shift 2
    case $1 in
    up) podman-compose up --no-build "${@:2}" coe prometheus ;;
    exec) podman-compose exec -T "${@:2}" ;;
    *) podman-compose "$@" ;;
    esac
}
fail() {
    printf 'check: %s\n' "$*" >&2
    podman logs --tail 20 $service >&2 2>/dev/null || true
    exit 1
}
inside() { podman exec "$service" "$@"; }

# Without systemd the health check's timer does not run: the check is run here.
wait_until_healthy() {
    local began=$SECONDS
    until podman healthcheck run $service >/dev/null 2>&1; do
        [ "$(podman inspect --format '{{.State.Status}}' $service)" = running ] || fail "the service has ended"
        [ $((SECONDS - began)) -lt 400 ] || fail "the health check fails after 400 s"
        sleep 1
    done
    see "healthy after $((SECONDS - began)) s"
}

see_user_and_file_system() {
    see "who runs, and where it may write"
    expect "user" "10001" "$(inside id -u)"
    expect "group" "10001" "$(inside id -g)"
    expect "users of all its processes" "10001" "$(inside sh -c 'stat -c %u /proc/[0-9]*' 2>/dev/null | sort -u)"
    expect "capabilities" "0000000000000000" "$(inside sed -n 's/^CapEff:\s*//p' /proc/self/status)"
    expect "no new privileges" "1" "$(inside sed -n 's/^NoNewPrivs:\s*//p' /proc/self/status)"
    for place in / /etc /usr/local/bin /opt/coe /opt/vllm/bin /opt/demo /etc/coe; do
        if inside sh -c "touch $place/written 2>/dev/null"; then fail "$place can be written"; fi
    done
    expect "root file system" "ro" "$(inside sh -c "sed -n 's|^[^ ]* / [^ ]* \(r[ow]\),.*|\1|p' /proc/mounts")"
    for place in /var/lib/coe /models /hub /keys /scrape /tmp; do inside sh -c "touch $place/written && rm $place/written"; done
    echo "may be written: /var/lib/coe /models /hub /keys /scrape /tmp"
}

see_answers() {
    see "questions"
    python3 $here/ask.py "$folder/api-key" french python units
}

see_keys() {
    see "keys"
    expect "without a key" 401 "$(curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8080/v1/models)"
    expect "with the secret's" 200 "$(curl -s -o /dev/null -w '%{http_code}' -H "authorization: Bearer $(cat "$folder/api-key")" http://127.0.0.1:8080/v1/models)"
    expect "a client's key on /admin/experts" 403 "$(curl -s -o /dev/null -w '%{http_code}' -H "authorization: Bearer $(cat "$folder/api-key")" http://127.0.0.1:8080/admin/experts)"
    expect "Prometheus's on /metrics" 200 "$(curl -s -o /dev/null -w '%{http_code}' -H "authorization: Bearer $(inside cat /scrape/COE_SCRAPE_KEY)" http://127.0.0.1:8080/metrics)"
    expect "Prometheus's on /admin/experts" 403 "$(curl -s -o /dev/null -w '%{http_code}' -H "authorization: Bearer $(inside cat /scrape/COE_SCRAPE_KEY)" http://127.0.0.1:8080/admin/experts)"
    expect "the admin's, made at the first start" 200 "$(curl -s -o /dev/null -w '%{http_code}' -H "authorization: Bearer $(inside cat /keys/COE_ADMIN_KEY)" http://127.0.0.1:8080/admin/experts)"
}

see_scrape() {
    see "Prometheus"
    expect "up{job=coe}" 1 "$(metric 'up{job="coe"}' 1)"
    echo "decisions it has seen: $(metric 'sum(coe_decisions_total)' 3)"
    expect "alert rules" "$(grep -c "alert:" deploy/prometheus/alerts.yml)" "$(curl -s http://127.0.0.1:9090/api/v1/rules | python3 -c 'import json,sys; print(sum(len(g["rules"]) for g in json.load(sys.stdin)["data"]["groups"]))')"
}

# metric QUERY LEAST: the value, once it is at least LEAST
metric() {
    local value
    for _ in $(seq 60); do
        value=$(curl -s --data-urlencode "query=$1" http://127.0.0.1:9090/api/v1/query |
            python3 -c 'import json,sys; found = json.load(sys.stdin)["data"]["result"]; print(found[0]["value"][1] if found else 0)')
        if [ "${value%.*}" -ge "$2" ]; then
            echo "$value"
            return
        fi
        sleep 1
    done
    fail "Prometheus does not see $1 reach $2; it is $value"
}

see_engine_killed() {
    see "kill -9 of an engine"
    local before after pid
    before=$(podman inspect --format '{{.State.Pid}}' $service)
    pid=$(podman exec -i $service python - french <$here/engine_pid.py)
    inside sh -c "kill -9 $pid"
    echo "killed process $pid, the engine of french"
    python3 $here/ask.py "$folder/api-key" french
    after=$(podman inspect --format '{{.State.Pid}}' $service)
    expect "the service's process is the same" "$before" "$after"
    expect "restarts" 0 "$(podman inspect --format '{{.RestartCount}}' $service)"
    echo "engine of french now: process $(podman exec -i $service python - french <$here/engine_pid.py)"
}

see_restart_remembers() {
    see "stopped and started again"
    local key
    key=$(inside cat /keys/COE_ADMIN_KEY)
    local began=$SECONDS
    podman restart --time 60 $service >/dev/null 2>&1
    wait_until_healthy
    echo "stopped and ready again in $((SECONDS - began)) s"
    [ "$key" = "$(inside cat /keys/COE_ADMIN_KEY)" ] || fail "the admin key is another one"
    echo "the admin key is the same"
    inside test -s /var/lib/coe/state/costs.json && echo "the measured costs of moves are kept"
}

see_documented_commands() {
    see "the other commands of docs/deploy.md"
    as_documented docker compose exec coe cat /keys/COE_API_KEY >"$folder/said" 2>/dev/null || fail "exec: $(cat "$folder/said")"
    expect "the service's key" "$(cat "$folder/api-key")" "$(cat "$folder/said")"
    as_documented docker compose exec coe coe validate /etc/coe/serve.yaml >"$folder/said" 2>&1 || fail "coe validate says: $(cat "$folder/said")"
    grep -o "[A-Z][a-z ]* waits longer than [^:]*" "$folder/said" || fail "coe validate says: $(cat "$folder/said")"
    see_room_for_the_ledger
    as_documented docker compose logs coe >"$folder/said" 2>&1 || fail "logs: $(tail -5 "$folder/said")"
    grep -q "listening on" "$folder/said" || fail "the log says: $(tail -5 "$folder/said")"
    echo "the log has $(wc -l <"$folder/said") lines"
}

see_room_for_the_ledger() {
    local least limit
    least=$(tr '\n' ' ' <"$folder/said" | sed -n 's/.*: at least \([0-9]*\)m, which.*/\1/p')
    limit=$(inside sh -c 'cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max' 2>/dev/null)
    [ $((limit >> 20)) -ge "$least" ] || fail "the container may have $limit bytes, and coe validate asks for $least MiB"
    echo "memory limit: $((limit >> 20)) MiB; coe validate asks for $least"
}

take_down() {
    see "taking it down"
    as_documented docker compose down >"$folder/down.log" 2>&1 || fail "podman-compose down: $(tail -5 "$folder/down.log")"
    expect "containers left" 0 "$(podman ps --all --quiet | wc -l)"
    expect "processes of user 10001 left" 0 "$(stat -c %u /proc/[0-9]* 2>/dev/null | grep -cx 10001 || true)"
}

# One sentence and exit code 2, no traceback.
see_bad_cases() {
    see "mistakes"
    mistake "no model in its folder" "s|/opt/demo/experts/sql|/models/sql|" "there is no model in the folder /models/sql"
    mistake "no router artifact" "s|/opt/demo/router|/etc/coe/router|" "/etc/coe/router"
    mistake "more memory than the container has" "s|host: 3200MiB|host: 900GiB|" "only"
    mkdir -p "$folder/empty"
    sentence "no serve.yaml" "$folder/empty" "cannot be read"
}

mistake() { # mistake TITLE SED WORDS
    mkdir -p "$folder/wrong"
    sed "$2" deploy/demo-cpu/serve.yaml >"$folder/wrong/serve.yaml"
    sentence "$1" "$folder/wrong" "$3"
}

sentence() { # sentence TITLE FOLDER WORDS
    local status=0
    podman run --rm --no-healthcheck --network none --read-only --memory 5g --volume "$2:/etc/coe:ro" $service_image >"$folder/said" 2>&1 || status=$?
    [ $status = 2 ] || fail "$1: exit code $status: $(cat "$folder/said")"
    [ "$(wc -l <"$folder/said")" = 1 ] || fail "$1: more than a sentence: $(cat "$folder/said")"
    grep -qF -- "$3" "$folder/said" || fail "$1: does not say '$3': $(cat "$folder/said")"
    echo "$1: $(cat "$folder/said")"
}

see_gpu_steps() {
    see "the GPU image's steps"
    podman run --rm --no-healthcheck --network none --read-only --volume "$PWD/deploy/demo-gpu:/etc/coe:ro" "localhost/coe-server:$version-gpu-steps" \
        route /etc/coe/serve.yaml "942 metres in decimetres" >"$folder/said" 2>&1 || fail "coe route: $(cat "$folder/said")"
    head -1 "$folder/said"
}

main

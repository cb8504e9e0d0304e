# Output and assertions of the parts of deploy/check.sh, which source this file.
trap 'printf "check: line %s, %s: it failed\n" "$LINENO" "$BASH_COMMAND" >&2' ERR

say() { printf '\n== %s\n' "$*"; }
see() { printf -- '-- %s\n' "$*"; }
fail() {
    printf 'check: %s\n' "$*" >&2
    exit 1
}
expect() { # expect NAME WANTED FOUND
    [ "$2" = "$3" ] || fail "$1 should be '$2' and is '$3'"
    echo "$1: $3"
}

# shellcheck shell=bash disable=SC2034
# Shared by the lab scripts. Sourced, not run.

LAB_PREFIX=${LAB_PREFIX:-p2plab}                  # network namespaces are $LAB_PREFIX-*
LAB_DIR=${LAB_DIR:-${TMPDIR:-/tmp}/$LAB_PREFIX}   # state of the running lab
LAB_BIN=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
UP_ADDR=10.77.0.1
UP_PORT=8080

die() { echo "${0##*/}: $*" >&2; exit 1; }
say() { echo "${0##*/}: $*" >&2; }

need_root() { [ "$(id -u)" = 0 ] || die "must run as root"; }

# need CMD=PACKAGE...: fail with an apt hint if a command is missing.
need() {
    local p missing=()
    for p; do command -v "${p%%=*}" >/dev/null || missing+=("${p##*=}"); done
    [ ${#missing[@]} = 0 ] || die "missing commands; try: apt-get install ${missing[*]}"
}

# A mount point for the private stores. An existing /nix is only ever covered, never written. One made
# here is shared by every lab of the host, so each leaves its name inside and the last removes it:
# removing a directory takes away whatever other labs have mounted there, and being full protects it.
MOUNT_USERS=/nix/.lab-mountpoint
need_mountpoint() {
    (
        flock 9
        if [ ! -d /nix ]; then mkdir -p "$MOUNT_USERS"; fi
        if [ -d "$MOUNT_USERS" ]; then printf '%s\n' "$1" >"$MOUNT_USERS/${1//\//%}"; fi
    ) 9>/run/lab-mountpoint.lock
}
drop_mountpoint() {
    (
        flock 9
        rm -f "$MOUNT_USERS/${1//\//%}"
        for f in "$MOUNT_USERS"/*; do   # labs whose state was removed by hand
            if [ -e "$f" ] && [ ! -d "$(cat "$f")" ]; then rm -f "$f"; fi
        done
        if [ -d "$MOUNT_USERS" ] && rmdir "$MOUNT_USERS" 2>/dev/null; then rmdir /nix 2>/dev/null || true; fi
    ) 9>/run/lab-mountpoint.lock
}

ns_exists() { [ -e "/run/netns/$1" ]; }

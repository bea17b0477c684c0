# shellcheck shell=bash
# Machines for scripts/test-systemd: Debian's systemd as PID 1 under systemd-nspawn, in the lab's network
# namespaces, each with a root of its own that shares only the host's /usr, read-only. Sourced, not run.
#
# Expects LAB_PREFIX, LAB_DIR, units (directory of rendered units), bin (directory of the programs) and
# corpus. Everything is below $LAB_DIR.

# in_cgroups NAME COMMAND...: where nspawn gets what it needs: a delegated part of a cgroup hierarchy's
# own root, mounted where systemd looks.
in_cgroups() {
    # shellcheck disable=SC2016
    exec setsid unshare -m -C bash -euc '
        umount -R /sys/fs/cgroup
        mount -t cgroup2 none /sys/fs/cgroup
        mkdir -p "/sys/fs/cgroup/$1"
        echo $$ >"/sys/fs/cgroup/$1/cgroup.procs"
        exec "${@:2}"
    ' in_cgroups "$@"
}

# can_boot: whether nspawn works here at all; says why not.
can_boot() {
    local r
    r=$(mktemp -d "$LAB_DIR/probe.XXXX")
    mkdir -p "$r"/{usr,etc,root,proc,sys,dev,run,tmp,var}
    ln -s usr/bin usr/lib "$r/"
    if [ -d /usr/lib64 ]; then ln -s usr/lib64 "$r/"; fi
    touch "$r/etc/os-release"
    (in_cgroups "$LAB_PREFIX-probe" systemd-nspawn --quiet --as-pid2 --register=no --keep-unit --directory="$r" --bind-ro=/usr:/usr \
        --machine="$LAB_PREFIX-probe" --resolv-conf=off --timezone=off --link-journal=no --console=pipe /usr/bin/true) 2>&1 </dev/null
}

machine_root() { echo "$LAB_DIR/root$1"; }

# make_root I: what an installation would put there. /usr is mounted by nspawn.
make_root() {
    local r d
    r=$(machine_root "$1")
    mkdir -p "$r"/{etc/systemd/system,etc/flurry,etc/nix,opt/flurry/bin,usr,var/lib,var/log,root,nix,tmp,run,proc,sys,dev}
    for d in bin sbin lib lib64 lib32 libx32; do
        if [ -L "/$d" ]; then ln -sfn "usr/$d" "$r/$d"; fi
    done
    cp -L /etc/nsswitch.conf /etc/ld.so.cache "$r/etc/"
    cp -rL /etc/alternatives "$r/etc/" 2>/dev/null || true
    printf 'root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/usr/sbin/nologin\n' >"$r/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\nflurry:x:990:\n' >"$r/etc/group"
    printf 'ID=test\nNAME=test\n' >"$r/etc/os-release"
    printf '%032x\n' "$((0xf1000 + $1))" >"$r/etc/machine-id"
    cp "$LAB_DIR/hosts" "$r/etc/hosts"
    install -m 755 "$bin/flurry" "$bin/flurry-standby" "$r/opt/flurry/bin/"
    cp "$units"/flurry.service "$units"/flurry.socket "$units"/flurry-standby.service "$r/etc/systemd/system/"
    # Only what is tested is started. There is no network to configure: it is online.
    cat >"$r/etc/systemd/system/test.target" <<'UNIT'
[Unit]
Requires=basic.target
After=basic.target
Wants=flurry.socket flurry.service flurry-standby.service
AllowIsolate=yes
UNIT
    ln -sfn test.target "$r/etc/systemd/system/default.target"
    for d in systemd-sysusers systemd-hwdb-update systemd-update-done ldconfig systemd-journal-catalog-update systemd-firstboot \
        systemd-networkd systemd-resolved systemd-timesyncd systemd-udevd systemd-logind e2scrub_reap dbus; do
        ln -sfn /dev/null "$r/etc/systemd/system/$d.service"
    done
    mkdir -p "$r/etc/systemd/journald.conf.d"
    printf '[Journal]\nStorage=volatile\nRateLimitBurst=0\n' >"$r/etc/systemd/journald.conf.d/test.conf"
}

# nix_conf I SUBSTITUTER...
nix_conf() {
    cat >"$(machine_root "$1")/etc/nix/nix.conf" <<CONF
build-users-group =
sandbox = false
experimental-features = nix-command
connect-timeout = 5
substituters = ${*:2}
trusted-public-keys = $(cat "$corpus/key.pub")
CONF
}

# boot I: starts the machine and waits until it answers commands.
boot() {
    local r log=$LAB_DIR/boot$1.log pidfile=$LAB_DIR/nspawn$1.pid t
    r=$(machine_root "$1")
    (
        in_cgroups "$LAB_PREFIX-m$1" \
            systemd-nspawn --quiet --boot --register=no --keep-unit --directory="$r" --bind-ro=/usr:/usr --machine="$LAB_PREFIX-m$1" \
            --network-namespace-path="/run/netns/$LAB_PREFIX-m$1" --resolv-conf=off --timezone=off --link-journal=no --console=pipe
    ) </dev/null >"$log" 2>&1 &
    echo $! >"$pidfile"
    for ((t = 0; t < 300; t++)); do
        if leader "$1" >/dev/null && on "$1" systemctl is-active --quiet test.target 2>/dev/null; then return; fi
        kill -0 "$(cat "$pidfile")" 2>/dev/null || break
        sleep 0.1
    done
    echo "machine $1 does not boot:" >&2
    tail -n 20 "$log" >&2
    return 1
}

# leader I: the pid of the machine's PID 1.
leader() {
    local p
    p=$(cat "$LAB_DIR/nspawn$1.pid") || return 1
    p=$(cat "/proc/$p/task/$p/children" 2>/dev/null) || return 1
    p=${p%% *}
    [ -n "$p" ] && [ "$(cat "/proc/$p/comm" 2>/dev/null)" = systemd ] && echo "$p"
}

# on I COMMAND...: runs as root in the machine.
on() {
    nsenter -t "$(leader "$1")" -m -u -i -n -p -r -w env -i PATH=/opt/flurry/bin:/usr/bin:/usr/sbin:/bin:/sbin HOME=/root "${@:2}"
}

halt() {
    local p t
    p=$(cat "$LAB_DIR/nspawn$1.pid" 2>/dev/null) || return 0
    kill -TERM "$p" 2>/dev/null || return 0
    for ((t = 0; t < 100; t++)); do kill -0 "$p" 2>/dev/null || return 0; sleep 0.1; done
    kill -KILL "$p" 2>/dev/null || true
}

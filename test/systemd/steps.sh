# shellcheck shell=bash
# The steps of scripts/test-systemd. Sourced, not run.

# --- evaluation: without any machine -------------------------------------------------------------------

promises() {
    local results name=$1
    results=$(evaluate test/systemd/module-test.nix --arg lib "$2") || { bad "$name: does not evaluate"; return 0; }
    if jq -e 'length > 40 and all(.ok)' >/dev/null <<<"$results"; then
        ok "$name: $(jq length <<<"$results") promises of the module hold"
    else
        jq -r '.[] | select(.ok | not) | "        \(.name): got \(.got)"' <<<"$results"
        bad "$name: promises of the module"
    fi
}

step_evaluate() {
    local f
    step "evaluation"
    for f in flake.nix default.nix package.nix nixos-module/*.nix nixos-module/test/*.nix contrib/systemd/*.nix test/systemd/*.nix test/systemd/standin/*.nix; do
        nix-instantiate --store dummy:// --parse "$f" >/dev/null 2>"$LAB_DIR/parse.err" || { bad "$f does not parse"; cat "$LAB_DIR/parse.err"; }
    done
    ok "every Nix file parses"
    promises "stand-in lib" "$standin"
    if [ -n "$reallib" ]; then promises "nixpkgs lib $(cat "$reallib/.version" 2>/dev/null)" "import $reallib"; fi
    check "the other modules evaluate" evaluate test/systemd/others.nix --arg lib "$standin"
    check "contrib/systemd is what the module says" scripts/systemd-units -c
    step_build_check
    flake_check
}

# Every output of the flake down to its derivations, with a stand-in for nixpkgs, by each Nix there is.
flake_check() {
    local cache=${FLURRY_LAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/flurry-lab} nix
    mkdir -p "$LAB_DIR/flake"
    tar -c --exclude=./.git --exclude=./bin . | tar -x -C "$LAB_DIR/flake"
    for nix in nix "$cache/nix-trixie/bin/nix"; do
        command -v "$nix" >/dev/null || { note "no $nix; lab/newer-nix ${nix%/bin/nix} fetches it"; continue; }
        check "flake check, without building, by $("$nix" --version)" env HOME="$LAB_DIR" "$nix" --extra-experimental-features 'nix-command flakes' \
            --store "$LAB_DIR/store" flake check --no-build --no-write-lock-file \
            --override-input nixpkgs "path:$LAB_DIR/flake/test/systemd/standin" "path:$LAB_DIR/flake"
    done
}

# The derivation that checks the configuration runs a script; it is run here as stdenv would.
step_build_check() {
    local script toml
    build
    run_check() {
        package=$LAB_DIR machine "$1" >"$LAB_DIR/machine.json"
        rm -rf "$LAB_DIR/build"
        mkdir -p "$LAB_DIR/build"
        jq -r .toml "$LAB_DIR/machine.json" >"$LAB_DIR/build/raw.toml"
        jq -r .check "$LAB_DIR/machine.json" >"$LAB_DIR/build/check"
        # A process of its own, with nothing of this environment: a FLURRY_… would be a setting.
        cat >"$LAB_DIR/build/stdenv" <<'SH'
substituteInPlace() { grep -qF -- "$3" "$1" && sed -i "s|$3|$4|g" "$1"; }
. ./check
SH
        (cd "$LAB_DIR/build" && env -i PATH="$PATH" raw="$PWD/raw.toml" out="$PWD/out" bash -eu stdenv)
    }
    check "a good configuration builds, secrets and all" run_check '{ settings = {
        peers.secret_file = "/run/secrets/group"; limits.upload = "50Mbit/s";
        upstream = [ { url = "https://cache.nixos.org"; headers_file = "/run/secrets/headers"; } ]; }; }'
    if run_check '{ settings.peers.mdsn = true; }' >"$LAB_DIR/check.log" 2>&1; then
        bad "a mistyped key builds"
    elif grep -q 'checked.toml:[0-9]*: peers.mdsn: .*peers.mdns' "$LAB_DIR/check.log"; then
        ok "a mistyped key does not build: $(grep -o 'checked.toml.*' "$LAB_DIR/check.log" | head -n 1)"
    else
        bad "a mistyped key does not build, but the message does not help"
        cat "$LAB_DIR/check.log"
    fi
}

# --- units ------------------------------------------------------------------------------------------------

# write_units DIR CONFIGURATION
write_units() {
    local u
    mkdir -p "$1"
    machine "$2" >"$LAB_DIR/machine.json"
    for u in flurry.service flurry.socket flurry-standby.service; do jq -r --arg u "$u" '.units[$u]' "$LAB_DIR/machine.json" >"$1/$u"; done
}

exposure() { systemd-analyze security --offline=yes --threshold=$maxExposure "$1" | sed -n 's/^→ Overall exposure level for [^:]*: //p'; }

step_units() {
    local d=$LAB_DIR/verify said u
    step "units"
    build
    package=$LAB_DIR write_units "$d" '{ settings.peers.secret_file = "/run/secrets/group"; }'
    said=$(cd "$d" && systemd-analyze verify --man=no ./flurry.socket ./flurry.service ./flurry-standby.service 2>&1) || said="$said (failed)"
    if [ -z "$said" ]; then ok "systemd-analyze verify says nothing"; else bad "systemd-analyze verify: $said"; fi
    for u in "$d"/flurry.service "$d"/flurry-standby.service contrib/systemd/flurry.service contrib/systemd/flurry-standby.service; do
        check "exposure of ${u#"$LAB_DIR/"}: $(exposure "$u")" exposure "$u"
    done
}

# --- machines ---------------------------------------------------------------------------------------------

central=http://10.77.0.1:8080
asked() { wc -l <"$LAB_DIR/upstream.log"; }

# timed FILE COMMAND...: leaves "exit N in S s" in FILE.
timed() {
    local start=$EPOCHREALTIME rc=0
    "${@:2}" >"$1.log" 2>&1 || rc=$?
    awk -v a="$start" -v b="$EPOCHREALTIME" -v rc="$rc" 'BEGIN { printf "exit %d in %.1f s", rc, b - a }' >"$1"
    return "$rc"
}
# get I PATH [NIX-STORE]: a closure, as Nix gets it; a stall is a failure.
get() { timed "$LAB_DIR/get$1" on "$1" timeout 240 "${3:-nix-store}" -r "$2"; }
# outcome DESCRIPTION I PATH [NIX-STORE]: Nix must get it.
outcome() { if get "${@:2}"; then ok "$1: $(cat "$LAB_DIR/get$2")"; else bad "$1: $(cat "$LAB_DIR/get$2"); $(tail -n 1 "$LAB_DIR/get$2.log")"; fi; }
# recorded: whatever it is.
recorded() { get "${@:2}" || true; note "$1: $(cat "$LAB_DIR/get$2")$(grep -o '^error.*' "$LAB_DIR/get$2.log" | tail -n 1 | sed 's/^/; /')"; }

# forget I: an empty store, and a Nix that remembers no cache.
forget() { on "$1" sh -c 'if [ -d /nix/store ]; then chmod -R u+w /nix/store; fi; rm -rf /nix/store /nix/var /root/.cache'; }
# wait_until COMMAND...: within 20 s.
wait_until() {
    local t
    for ((t = 0; t < 200; t++)); do if "$@" >/dev/null 2>&1; then return; fi; sleep 0.1; done
    return 1
}
state() { on "$1" flurry status --json | jq -e "$2"; }
pid_of() { on "$1" systemctl show -P MainPID "$2"; }
# instead I EXECSTART: another program in the agent's place, through a drop-in; without one, the agent again.
instead() {
    on "$1" sh -c '
        d=/run/systemd/system/flurry.service.d
        rm -rf $d
        if [ -n "$1" ]; then mkdir -p $d; printf "[Service]\nExecStart=\nExecStart=%s\n" "$1" >$d/test.conf; fi
        systemctl daemon-reload
        systemctl restart flurry || true' sh "${2:-}" >/dev/null 2>&1
}

machines_up() {
    local cache=${FLURRY_LAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/flurry-lab} i size=small
    if [ -n "$all" ]; then size=medium; fi
    mkdir -p "$cache"
    [ -e "$cache/$size/stamp" ] || lab/make-corpus -c mixed -x 1 "$cache/$size" $size >"$LAB_DIR/corpus.log" 2>&1 || { cat "$LAB_DIR/corpus.log" >&2; return 1; }
    corpus=$LAB_DIR/corpus     # a copy: a path is added below
    cp -al "$cache/$size" "$corpus" 2>/dev/null || cp -r "$cache/$size" "$corpus"
    root=$(awk -F'\t' '$2 == "system" { print $3 }' "$corpus/roots.tsv")
    some=$(awk -F'\t' '$4 == 0 { print $1; exit }' "$corpus/paths.tsv")
    paths=$(wc -l <"$corpus/paths.tsv")
    lab/lab-up -c "$corpus" 3 2>/dev/null
    write_units "$units" "{ settings.upstream = [ { url = \"$central\"; keys = [ \"$(cat "$corpus/key.pub")\" ]; public = true; } ]; }"
    for i in 1 2 3; do
        make_root "$i"
        jq -r .toml "$LAB_DIR/machine.json" >"$(machine_root "$i")/etc/flurry/config.toml"
        nix_conf "$i" http://127.0.0.1:6490
    done
    for i in 1 2 3; do boot "$i" & done
    wait
}

# sandboxed COMMAND...: checks that systemd-run, behind COMMAND, accepts the agent's whole sandbox, and that
# it holds. For hosts whose systemd runs but which cannot boot machines.
sandboxed() {
    local properties
    mapfile -t properties < <(sed -n '/^\[Service\]/,/^\[/p' "$units/flurry.service" |
        grep -E '^[A-Z][A-Za-z]+=' | grep -vE '^(Type|NotifyAccess|ExecStart|WatchdogSec|Timeout[A-Za-z]+|Restart[A-Za-z]*|Sockets|StateDirectory.*|RuntimeDirectory.*)=' | sed 's/^/-p/')
    # Without --wait, which asks for a message bus.
    # shellcheck disable=SC2016
    "$@" systemd-run --quiet --unit=flurry-sandbox -pType=oneshot -pRemainAfterExit=yes "${properties[@]}" /bin/sh -euc '
        grep -q "^Seccomp:.2" /proc/self/status
        grep -q "^CapBnd:.0*$" /proc/self/status
        [ "$(id -u)" != 0 ]
        for d in /usr /etc /var; do ! touch $d/x 2>/dev/null; done' || true
    check "systemd-run with the unit's ${#properties[@]} directives: they apply" "$@" systemctl is-active flurry-sandbox
    "$@" systemctl stop flurry-sandbox || true
}

# no_machines WHY
no_machines() {
    note "systemd-nspawn does not work here: $1"
    if [ -d /run/systemd/system ]; then
        write_units "$units" "{ }"
        sandboxed env
        note "SKIPPED: booted machines (office, crash loops, restarts in mid-copy, stopped socket); the sandbox was tried with systemd-run"
    else
        note "SKIPPED: booted machines and the sandbox at work; it takes cgroup v2 and mounts, or systemd as this host's PID 1"
    fi
}

step_machines() {
    local why
    if ! why=$(can_boot); then
        step "machines"
        no_machines "$why"
        return
    fi
    step "machines: systemd $(systemctl --version | awk 'NR == 1 { print $2 }') under systemd-nspawn"
    build
    machines_up
    note "not exercised: MemoryMax and TasksMax, where the host's memory and pids controllers are not in the unified hierarchy"
    office
    hardening
    crashing
    wrong_configuration
    restart_in_copy
    socket_stopped nix-store "Nix $(nix --version | awk '{ print $NF }')"
    if [ -n "$all" ]; then newer_nix; fi
}

office() {
    local before
    outcome "machine 1 fills through its agent from the central cache" 1 "$root"
    wait_until state 2 "any(.peers[]; .paths == $paths)" || bad "machine 2 does not hear what machine 1 has"
    wait_until state 3 "any(.peers[]; .paths == $paths)" || bad "machine 3 does not hear what machine 1 has"
    before=$(asked)
    outcome "machine 2 fills from its neighbour" 2 "$root"
    outcome "machine 3 fills from its neighbours" 3 "$root"
    note "requests to the central cache meanwhile: $(($(asked) - before))"
    check "the store is whole" on 3 nix-store --verify --check-contents
    check "flurry doctor finds nothing wrong" on 2 flurry doctor
    # No Nix process has the database open now; the agent is no root, and starts anew.
    on 3 systemctl restart flurry
    check "the agent reads the database as a dynamic user" wait_until state 3 ".store.shareable_paths == $paths"
}

hardening() {
    local pid
    pid=$(pid_of 2 flurry)
    on 2 cat "/proc/$pid/status" >"$LAB_DIR/status"
    check "seccomp filters" grep -q '^Seccomp:.2' "$LAB_DIR/status"
    check "no capability in any set" test "$(grep -c '^Cap.*:.0000000000000000' "$LAB_DIR/status")" = 5
    check "no new privileges, not root" sh -c 'grep -q "^NoNewPrivs:.1" "$1" && ! grep -q "^Uid:.0" "$1"' sh "$LAB_DIR/status"
    # As root in the agent's mount namespace: only the mounts' flags stand in the way.
    # shellcheck disable=SC2016
    check "the system is read-only to it, its state is not" on 2 nsenter -t "$pid" -m sh -c '
        for d in /usr /etc /opt /var /nix /nix/store /nix/var/nix/db; do
            if touch $d/x 2>/dev/null; then echo "$d can be written"; exit 1; fi
        done
        touch /var/lib/flurry/x && rm /var/lib/flurry/x'
    check "a member of group flurry may ask the agent" on 2 setpriv --reuid 1001 --regid 1001 --groups 990 flurry peers
    check "nobody else may" sh -c '! "$@"' sh nsenter -t "$(leader 2)" -m -u -i -n -p -r -w setpriv --reuid 1002 --regid 1002 --clear-groups /opt/flurry/bin/flurry peers
    sandboxed on 2
    check "the stand-in has no network of its own" test "$(on 2 readlink "/proc/$(pid_of 2 flurry-standby)/ns/net")" != "$(on 2 readlink "/proc/$pid/ns/net")"
    check "the stand-in is idle while the agent lives" sh -c '! grep -q "does not answer"' <<<"$(on 2 journalctl -q -o cat -u flurry-standby)"
}

# With a cache that Nix knows already: the case in which a dead port fails builds.
crashing() {
    local n
    nix_conf 3 http://127.0.0.1:6490 "$central"
    forget 3
    outcome "(Nix learns of the cache)" 3 "$some"
    instead 3 /bin/false
    n=$(on 3 systemctl show -P NRestarts flurry)
    outcome "agent crashing for ever, socket held: Nix gets all from the central cache" 3 "$root"
    check "systemd has not given up" test "$(on 3 systemctl show -P NRestarts flurry)" -gt "$n"
    nix_conf 3 "$central"
    forget 3
    outcome "the same from the central cache alone, for comparison" 3 "$root"
    nix_conf 3 http://127.0.0.1:6490 "$central"
}

wrong_configuration() {
    local why
    on 3 sh -c 'printf "[peers]\nmdsn = true\n" >/etc/flurry/wrong.toml'
    instead 3 "/opt/flurry/bin/flurry agent --config /etc/flurry/wrong.toml"
    why=$(on 3 systemctl show -P StatusText flurry)
    if [[ $why = *wrong.toml:2:*peers.mdns* ]]; then ok "wrong configuration: systemctl status says \"$why\""; else bad "wrong configuration: status \"$why\""; fi
    forget 3
    outcome "wrong configuration: Nix gets all from the central cache" 3 "$root"
    instead 3
    wait_until state 3 .uptime_seconds || bad "the agent does not come back"
}

# As `nixos-rebuild switch` does it, and the hard way.
restart_in_copy() {
    local mb=150 rate=150mbit big before copying
    if [ -n "$all" ]; then mb=500 rate=400mbit; fi
    cp "$corpus/key.sec" "$(machine_root 1)/key.sec"
    # shellcheck disable=SC2016
    big=$(on 1 sh -euc 'head -c "$1"000000 /dev/urandom >/root/blob
        p=$(nix-store --add /root/blob)
        nix store sign -k /key.sec "$p" 2>/dev/null
        nix copy --to "file:///root/cache?compression=none" "$p" 2>/dev/null
        echo "$p"' sh "$mb")
    cp -r "$(machine_root 1)"/root/cache/nar/* "$corpus/cache/nar/"
    cp "$(machine_root 1)"/root/cache/*.narinfo "$corpus/cache/"
    tc -n "$LAB_PREFIX-m1" qdisc replace dev eth0 root tbf rate "$rate" burst 128kb latency 100ms
    tc -n "$LAB_PREFIX-up" qdisc replace dev eth0 root tbf rate "$rate" burst 128kb latency 100ms
    for how in "systemctl restart flurry" "systemctl kill -s KILL flurry"; do
        on 3 nix-store --delete "$big" >/dev/null 2>&1 || true
        on 3 flurry cache clear >/dev/null
        before=$(pid_of 3 flurry)
        get 3 "$big" &
        copying=$!
        wait_until state 3 '.in_flight >= 1' || bad "$how: no copy is under way"
        # shellcheck disable=SC2086
        on 3 $how
        if kill -0 $copying 2>/dev/null; then :; else bad "$how: Nix had ended before"; fi
        if wait $copying; then ok "$how while Nix copies $mb MB: $(cat "$LAB_DIR/get3")"; else bad "$how while Nix copies $mb MB: $(cat "$LAB_DIR/get3"); $(tail -n 1 "$LAB_DIR/get3.log")"; fi
        check "it was another process afterwards" test "$(pid_of 3 flurry)" != "$before"
        check "the path is whole" on 3 nix-store --verify-path "$big"
    done
    tc -n "$LAB_PREFIX-m1" qdisc del dev eth0 root
    tc -n "$LAB_PREFIX-up" qdisc del dev eth0 root
}

# What the user asked for; how each Nix takes it is recorded, not judged. $1 is nix-store, $2 its name.
socket_stopped() {
    forget 3
    outcome "$2: (learns of the cache)" 3 "$some" "$1"
    on 3 systemctl stop flurry.socket
    check "stopping the socket stops agent and stand-in" test "$(on 3 systemctl is-active flurry flurry-standby flurry.socket | sort -u)" = inactive
    recorded "$2, socket stopped by hand, cache known" 3 "$root" "$1"
    forget 3
    recorded "$2, socket stopped by hand, first use" 3 "$root" "$1"
    on 3 systemctl start flurry.socket flurry flurry-standby
}

newer_nix() {
    local cache=${FLURRY_LAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/flurry-lab} suite d v
    for suite in trixie sid; do
        lab/newer-nix -s "$suite" "$cache/nix-$suite" >/dev/null 2>&1 || { bad "no Nix of $suite"; continue; }
        v=$(cat "$cache/nix-$suite/version")
        d=$(machine_root 3)/opt/nix-$suite
        cp -r "$cache/nix-$suite" "$d"
        sed -i "s#$cache/nix-$suite#/opt/nix-$suite#g" "$d"/bin/*
        instead 3 /bin/false
        forget 3
        outcome "Nix $v, agent crashing for ever, first use" 3 "$root" "/opt/nix-$suite/bin/nix-store"
        instead 3
        socket_stopped "/opt/nix-$suite/bin/nix-store" "Nix $v"
    done
}

# --- package ----------------------------------------------------------------------------------------------

step_vendor() {
    step "vendorHash"
    check "package.nix has the hash of go mod vendor" scripts/vendor-hash -c
    # shellcheck disable=SC2016
    check "the package's source has every folder that the programs come from" sh -euc '
        go list -deps -f "{{if .Module}}{{if .Module.Main}}{{.ImportPath}}{{end}}{{end}}" ./cmd/... | cut -d/ -f4 | sort -u |
            comm -23 - "$1" | { ! grep .; }' sh <(sort nixos-module/source.list)
}

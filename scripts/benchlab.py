"""A lab of real Nix clients and agents for the benchmarks beside this file."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

REPO = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
UPSTREAM = "http://10.77.0.1:8080"
AGENT = "http://127.0.0.1:6490"
NIX_CONF = """build-users-group =
sandbox = false
experimental-features = nix-command
connect-timeout = 5
require-sigs = true
substituters = {substituters}
trusted-public-keys = {key}
"""


def cache_dir():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.environ.get("FLURRY_LAB_CACHE") or os.path.join(base, "flurry-lab")


def say(*what):
    print(*what, file=sys.stderr, flush=True)


def terminated(*_):
    raise KeyboardInterrupt  # so that the lab is removed


class Corpus:
    """A signed binary cache and the root of its closure."""

    def __init__(self, name, root="system"):
        self.dir = name if "/" in name else os.path.join(cache_dir(), name)
        if name in ("small", "medium", "large") and not os.path.exists(os.path.join(self.dir, "stamp")):
            run([os.path.join(REPO, "lab/make-corpus"), "-c", "mixed", self.dir, name])
        elif name.startswith("big") and (name == "big" or name[3:].isdigit()):
            make_big(self.dir, int(name[3:] or 1024) << 20)
        with open(os.path.join(self.dir, "key.pub")) as f:
            self.key = f.read().strip()
        with open(os.path.join(self.dir, "roots.tsv")) as f:
            self.root = next(line.split("\t")[2].strip() for line in f if line.split("\t")[1] == root)
        with open(os.path.join(self.dir, "paths.tsv")) as f:
            self.paths = [line.rstrip("\n").split("\t") for line in f]
        if root != "system":
            inside = self.closure(os.path.basename(self.root), set())
            self.paths = [p for p in self.paths if os.path.basename(p[0]) in inside]
        self.compressed = sum(int(p[2]) for p in self.paths)
        self.nar_bytes = sum(int(p[1]) for p in self.paths)

    def closure(self, name, seen):
        """Adds to seen what a path refers to, and what that does, as base names."""
        seen.add(name)
        with open(os.path.join(self.dir, "cache", name[:32] + ".narinfo")) as f:
            refs = next(line for line in f if line.startswith("References:"))
        for r in refs.split()[1:]:
            if r not in seen:
                self.closure(r, seen)
        return seen


def make_big(to, size):
    """One path whose NAR is size bytes that do not compress."""
    if os.path.exists(os.path.join(to, "roots.tsv")):
        return
    shutil.rmtree(to, ignore_errors=True)
    os.makedirs(os.path.join(to, "build"))
    build = os.path.join(to, "build")
    data = os.path.join(build, "big")
    with open(data, "wb") as f:
        for _ in range(size >> 20):
            f.write(os.urandom(1 << 20))
        f.truncate(size - 112 - 8)  # what a NAR of one file adds
    env = dict(os.environ, HOME=build, NIX_REMOTE="", NIX_CONF_DIR=build, NIX_STATE_DIR=build + "/var", NIX_LOG_DIR=build + "/log")
    with open(build + "/nix.conf", "w") as f:
        f.write(NIX_CONF.format(substituters="", key=""))
    key, pub = os.path.join(to, "key.sec"), os.path.join(to, "key.pub")
    run(["nix-store", "--generate-binary-cache-key", "big-1", key, pub], env=env)
    # A private /nix, as in the lab: the host's is not written to.
    script = (f'mkdir -p {build}/nix /nix; mount --bind {build}/nix /nix; unset NIX_STATE_DIR NIX_LOG_DIR; '
              f'p=$(nix-store --add {data}); nix copy --to "file://{to}/cache?compression=zstd&compression-level=1&secret-key={key}" "$p"; echo "$p"')
    path = run(["unshare", "-m", "bash", "-euc", script], env=env).strip().splitlines()[-1]
    shutil.rmtree(build)
    info = {}
    name = os.path.join(to, "cache", os.path.basename(path)[:32] + ".narinfo")
    with open(name) as f:
        for line in f:
            k, _, v = line.partition(": ")
            info[k] = v.strip()
    with open(os.path.join(to, "paths.tsv"), "w") as f:
        f.write("\t".join([path, info["NarSize"], info["FileSize"], "0", info["URL"]]) + "\n")
    with open(os.path.join(to, "roots.tsv"), "w") as f:
        f.write(f"1\tsystem\t{path}\n")


def run(args, **kw):
    r = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)
    if r.returncode:
        raise SystemExit(f"{os.path.basename(sys.argv[0])}: {args[0]}: exit status {r.returncode}\n{r.stderr[-2000:]}")
    return r.stdout


def in_sessions(sessions):
    """The processes of these sessions: what follows the name in /proc/PID/stat, by PID."""
    out = {}
    for d in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{d}/stat") as f:
                rest = f.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(rest[3]) in sessions:
            out[int(d)] = rest
    return out


def kill(pid, sig):
    try:
        os.kill(pid, sig)
    except ProcessLookupError:
        pass


class CPU:
    """Use of the whole computer's processors since the object was made."""

    def __init__(self):
        self.start, self.began = self.ticks(), time.time()

    @staticmethod
    def ticks():
        with open("/proc/stat") as f:
            t = [int(x) for x in f.readline().split()[1:]]
        return sum(t[:8]), t[3] + t[4]

    def use(self):
        total, idle = self.ticks()
        total, idle = total - self.start[0], idle - self.start[1]
        return 1 - idle / max(total, 1)


class Lab:
    """N machines and a throttled central cache. Use it as a context manager."""

    def __init__(self, corpus, n, rate=None, lan=None, delay=None, more=()):
        if os.geteuid():
            raise SystemExit("needs root, for network namespaces")
        self.corpus, self.n = corpus, n
        self.prefix = os.environ.get("LAB_PREFIX", f"fb{os.getpid() % 10000}")
        self.dir = os.environ.get("LAB_DIR") or tempfile.mkdtemp(prefix="flurry-bench-")
        # The agent takes FLURRY_… for its configuration.
        own = {k: v for k, v in os.environ.items() if not k.startswith("FLURRY_")}
        self.env = dict(own, LAB_PREFIX=self.prefix, LAB_DIR=self.dir)
        self.args = ["-c", corpus.dir] + (["-r", rate] if rate else []) + (["-l", lan] if lan else []) + (["-e", delay] if delay else []) + list(more)
        self.agents = {}

    def script(self, name):
        return os.path.join(REPO, "lab", name)

    def __enter__(self):
        signal.signal(signal.SIGTERM, terminated)
        self.script_run("lab-down")
        os.makedirs(self.dir, exist_ok=True)
        os.chmod(self.dir, 0o755)
        self.binary = os.path.join(self.dir, "flurry")
        source = os.environ.get("FLURRY_BIN")
        if not source:
            source = os.path.join(REPO, "bin/flurry")
            run(["make", "-C", REPO, "-s", "build"])
        shutil.copy(source, self.binary)
        os.chmod(self.binary, 0o755)
        self.script_run("lab-up", *self.args, str(self.n))
        for i in self.machines():
            self.substituters(i, UPSTREAM)
        return self

    def __exit__(self, *_):
        for a in list(self.agents):
            self.stop_agent(a)
        keep = ["-k"] if os.environ.get("LAB_KEEP") else []
        self.script_run("lab-down", *keep)

    def script_run(self, name, *args):
        # serve-upstream stays behind as a daemon; its output must not keep us waiting.
        with tempfile.TemporaryFile("w+") as err:
            r = subprocess.run([self.script(name), *args], env=self.env, stdin=subprocess.DEVNULL, stdout=err, stderr=err)
            if r.returncode:
                err.seek(0)
                raise SystemExit(f"{name}: {err.read()[-2000:]}")

    def machines(self):
        return range(1, self.n + 1)

    def home(self, i, *more):
        return os.path.join(self.dir, f"m{i}", *more)

    def command(self, i, *args, user=None):
        return [self.script("lab-exec"), *(["-u", user] if user else []), str(i), *args]

    def exec(self, i, *args):
        return run(self.command(i, *args), env=self.env)

    def feed(self, i, lines, *args):
        """Runs a command on machine i that reads these lines."""
        return run(self.command(i, *args), env=self.env, input="\n".join(lines) + "\n")

    def substituters(self, i, url):
        with open(self.home(i, "etc/nix.conf"), "w") as f:
            f.write(NIX_CONF.format(substituters=url, key=self.corpus.key))

    def wipe(self, i):
        """Empties a machine's store and forgets what Nix remembers."""
        for d in "nix", "home":
            for e in os.listdir(self.home(i, d)):
                subprocess.run(["rm", "-rf", self.home(i, d, e)], check=True)

    def preload(self, i):
        """Gives a machine the closure without the network."""
        self.exec(i, "nix-store", "--option", "substituters", f"file://{self.corpus.dir}/cache", "-r", self.corpus.root)

    def start_agent(self, i, toml="", identity=None, binary=None):
        """Starts an agent that knows nothing, but who it is if identity is a file that says so. binary is another's than the lab's."""
        d = self.home(i, "agent")
        shutil.rmtree(d, ignore_errors=True)
        for sub in "state", "run":
            os.makedirs(os.path.join(d, sub))
        if identity and os.path.exists(identity):
            shutil.copy(identity, os.path.join(d, "state/identity"))
        run(["chown", "-R", "nobody:nogroup", os.path.join(d, "state"), os.path.join(d, "run")])
        with open(os.path.join(d, "flurry.toml"), "w") as f:
            f.write(f'[[upstream]]\nurl = "{UPSTREAM}"\nkeys = ["{self.corpus.key}"]\npublic = true\n'
                    f'[log]\nlevel = "{os.environ.get("BENCH_LOG", "info")}"\n{toml}')
        env = ["env", f"HOME={d}/state", f"STATE_DIRECTORY={d}/state", f"RUNTIME_DIRECTORY={d}/run"]
        log = open(os.path.join(d, "log"), "w")
        self.agents[i] = subprocess.Popen(
            self.command(i, *env, binary or self.binary, "agent", "--config", d + "/flurry.toml", user="nobody"),
            env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.substituters(i, AGENT)

    def stop_agent(self, i, hard=False):
        p = self.agents.pop(i, None)
        if p and p.poll() is None:
            if hard:  # the agent is in a process group of its own; all at once, so that no successor is started
                for pid in in_sessions({p.pid}):
                    kill(pid, signal.SIGSTOP)
                for pid in in_sessions({p.pid}):
                    kill(pid, signal.SIGKILL)
            else:
                os.killpg(p.pid, signal.SIGTERM)
            try:
                p.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(p.pid, signal.SIGKILL)
                p.wait()

    def agents_cpu(self):
        """Processor seconds that all agents used so far."""
        ticks = 0
        for rest in in_sessions({p.pid for p in self.agents.values()}).values():
            ticks += sum(map(int, rest[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def status(self, i):
        r = subprocess.run([self.binary, "status", "--json", "--socket", self.home(i, "agent/run/flurry.sock")],
                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return json.loads(r.stdout) if r.returncode == 0 else None

    def await_peers(self, i, n, paths=0, offering=1, limit=40):
        """Waits until machine i is connected with n peers, so many of which offer so many paths."""
        for _ in range(limit * 5):
            s = self.status(i)
            if s:
                there = [p for p in s["peers"] if p["state"] == "connected"]
                if len(there) >= n and (not paths or sum(p["paths"] >= paths for p in there) >= offering):
                    return
            time.sleep(0.2)
        raise SystemExit(f"machine {i} does not find its {n} neighbours; see {self.home(i, 'agent/log')}")

    def realise(self, i):
        """Starts Nix getting the closure."""
        return Client(self, i)

    def verified(self, i):
        """Tells whether a machine's store holds the whole closure, undamaged."""
        r = subprocess.run(self.command(i, "nix-store", "--verify", "--check-contents"), env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        have = set(run(self.command(i, "nix-store", "-qR", self.corpus.root), env=self.env).split())
        return r.returncode == 0 and have == {p[0] for p in self.corpus.paths}

    def upstream_log(self, skip=0):
        """What the central cache sent, after the first skip lines: bytes and requests by kind."""
        out = {"lines": skip, "nar_requests": 0, "nar_bytes": 0, "narinfo_requests": 0, "narinfo_bytes": 0, "by_uri": {}}
        with open(os.path.join(self.dir, "upstream.log")) as f:
            for line in list(f)[skip:]:
                out["lines"] += 1
                _, client, _, uri, _, size, *_ = line.rstrip("\n").split("\t")
                if uri.startswith("/nar/"):
                    out["nar_requests"] += 1
                    out["nar_bytes"] += int(size)
                    out["by_uri"].setdefault(uri, []).append((client, int(size)))
                else:
                    out["narinfo_requests"] += 1
                    out["narinfo_bytes"] += int(size)
        return out


class Client:
    """A Nix client at work."""

    def __init__(self, lab, i):
        self.lab, self.i, self.took = lab, i, None
        self.log = open(lab.home(i, "nix.log"), "w")
        self.began = time.time()
        self.p = subprocess.Popen(lab.command(i, "nix-store", "-r", lab.corpus.root), env=lab.env, stdin=subprocess.DEVNULL,
                                  stdout=subprocess.DEVNULL, stderr=self.log, start_new_session=True)
        self.waiter = threading.Thread(target=self.watch)
        self.waiter.start()

    def watch(self):
        self.code = self.p.wait()
        self.took = time.time() - self.began

    def wait(self):
        self.waiter.join()
        return self.took

    def kill(self):
        try:
            os.killpg(self.p.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def finish(clients):
    """Waits for clients; returns each machine's seconds."""
    took = {}
    for c in clients:
        took[c.i] = c.wait()
        if c.code:
            with open(c.log.name) as f:
                raise SystemExit(f"Nix failed on machine {c.i}: " + f.read()[-1500:])
    return took

# What the end-to-end tests share: a running `penstock up`, a producer in plain redis and msgpack,
# and TAP. Everything they start is theirs, on free ports of loopback, in a folder of its own.
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

import msgpack
import redis

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.environ.get("PENSTOCK_BIN", os.path.join(ROOT, "build", "bin"))
PENSTOCK = os.path.join(BIN, "penstock")
FIXTURES = os.path.join(ROOT, "tests", "fixtures")
SHIPPED = os.path.join(ROOT, "tools", "model")


def run(*args, stdin=None, timeout=120):
    """A penstock subcommand to its end: (exit status, stdout, stderr)."""
    p = subprocess.run([PENSTOCK, *args], input=stdin, capture_output=True, text=True,
                       timeout=timeout)
    return p.returncode, p.stdout, p.stderr


class Up:
    """`penstock up` until it serves; stopped with the block."""

    def __init__(self, model, *flags, folder=None):
        self.folder = folder or tempfile.mkdtemp(prefix="penstock-e2e-")
        self.owned = folder is None
        self.args = [PENSTOCK, "up", "--model", model, "--redis-port", "0", "--broker-port", "0",
                     "--data-dir", self.folder, *flags]

    def __enter__(self):
        self.log = open(os.path.join(self.folder, "stderr.log"), "a")
        self.process = subprocess.Popen(self.args, stdout=subprocess.PIPE, stderr=self.log,
                                        text=True)
        ready, _, _ = select.select([self.process.stdout], [], [], 60)
        line = self.process.stdout.readline() if ready else ""
        match = re.match(r"ready redis=(rediss?://127\.0\.0\.1:(\d+))$", line.strip())
        if not match:
            self.stop()
            raise AssertionError("up did not serve:\n" + self.text()[-4000:])
        self.url = match.group(1)
        self.redis = connect(self.url)
        return self

    def __exit__(self, *_):
        self.stop()
        if self.owned:
            shutil.rmtree(self.folder, ignore_errors=True)

    def stop(self, how=signal.SIGINT):
        if self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(90)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise
        return self.process.returncode

    def text(self):
        with open(os.path.join(self.folder, "stderr.log")) as f:
            return f.read()

    def pid(self, name):
        """The latest pid of a child: redis, broker, group-0, ..."""
        return int(re.findall(r"%s started(?: again)?, pid (\d+)" % name, self.text())[-1])

    def kill(self, name):
        os.kill(self.pid(name), signal.SIGKILL)

    def penstock(self, command, *args, **kwargs):
        return run(command, "--redis", self.url, *args, **kwargs)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Program:
    """A program of ours whose log lines are read; `say` is what it has said so far."""

    def __init__(self, *args, netns=None, name=""):
        prefix = ["ip", "netns", "exec", netns] if netns else []
        self.name, self.say, self.mark = name or os.path.basename(args[0]), "", 0
        self.process = subprocess.Popen([*prefix, *args], stderr=subprocess.PIPE,
                                        stdout=subprocess.DEVNULL)

    def read(self, seconds):
        if select.select([self.process.stderr], [], [], seconds)[0]:
            bytes = os.read(self.process.stderr.fileno(), 65536)
            self.say += bytes.decode(errors="replace")
            return len(bytes) > 0
        return False

    def wait(self, text, seconds=60):
        """Until `text` comes after what was waited for before; the rest of its line."""
        until = time.monotonic() + seconds
        while True:
            at = self.say.find(text, self.mark)
            end = self.say.find("\n", at)
            if at >= 0 and end >= 0:
                self.mark = end
                return self.say[at + len(text):end]
            if time.monotonic() > until:
                raise AssertionError("%s never said %s:\n%s" % (self.name, text, self.say[-3000:]))
            self.read(0.2)

    def stop(self, how=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(how)
        while self.read(60):
            pass
        return self.process.wait(60)


class Redis:
    """A redis-server with safe settings, reached through a socket file, or a port of loopback."""

    def __init__(self, *settings, port=None):
        self.port = port or free_port()
        self.folder = tempfile.mkdtemp(prefix="penstock-redis-")
        path = os.path.join(self.folder, "redis.sock")
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--unixsocket", path, "--dir", self.folder,
             "--bind", "127.0.0.1", "--appendonly", "yes", "--appendfsync", "always",
             "--maxmemory-policy", "noeviction",
             "--notify-keyspace-events", "Kl", "--save", "", *settings],
            stdout=subprocess.DEVNULL)
        self.url = "unix://" + path
        self.redis = redis.Redis(unix_socket_path=path, socket_timeout=30)
        patiently(self.redis.ping)

    def stop(self):
        self.process.terminate()
        self.process.wait(60)
        shutil.rmtree(self.folder, ignore_errors=True)


def connect(url):
    # Redis is killed under some tests: the producer tries again, which same ids make safe.
    return redis.Redis.from_url(url, socket_timeout=30)


def patiently(fn, seconds=60):
    """Calls fn until Redis answers."""
    until = time.monotonic() + seconds
    while True:
        try:
            return fn()
        except (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError):
            if time.monotonic() > until:
                raise
            select.select([], [], [], 0.05)


def until(look, fits=bool, seconds=60):
    """What look() gives, once it fits: for what no event tells of."""
    end = time.monotonic() + seconds
    while True:
        got = look()
        if fits(got):
            return got
        if time.monotonic() > end:
            raise AssertionError("not within %d s; at last: %s" % (seconds, str(got)[:2000]))
        select.select([], [], [], 0.05)


def job(id, op, body, **fields):
    return msgpack.packb({"v": 1, "id": id, "op": op, "body": body, **fields}, use_bin_type=True)


def push(r, message, tenant="default"):
    patiently(lambda: r.rpush("ps:{default}:in:%s" % tenant, message))


def result(r, id, tenant="default"):
    bytes = patiently(lambda: r.get("ps:{default}:r:%s:%s" % (tenant, id)))
    return None if bytes is None else msgpack.unpackb(bytes, raw=False)


def events(r, last="0-0", tenant="default", block_ms=1000):
    """(last id, [(job id, event)]) after `last`."""
    got = patiently(lambda: r.xread({"ps:{default}:ev:%s" % tenant: last}, block=block_ms))
    out = []
    for _, entries in got or []:
        for last, fields in entries:
            out.append((fields[b"id"].decode(), fields[b"event"].decode()))
    return last, out


ENDS = ("done", "failed", "cancelled", "expired")


def wait_all(r, ids, seconds=120, on_end=None):
    """Waits until each id has ended; {id: [its ending events]}."""
    until, last, ended = time.monotonic() + seconds, "0-0", {}
    while not all(i in ended for i in ids):
        if time.monotonic() > until:
            raise AssertionError("not ended: %s" % [i for i in ids if i not in ended][:10])
        last, some = events(r, last)
        for id, event in some:
            if event in ENDS:
                ended.setdefault(id, []).append(event)
                if on_end:
                    on_end(len(ended))
    return ended


def main(tests, skip=None):
    """Runs the functions; TAP on stdout. skip: {function: why, or empty}."""
    print("1..%d" % len(tests))
    failed = 0
    for i, test in enumerate(tests, 1):
        if skip and skip.get(test):
            print("ok %d - %s # skip %s" % (i, test.__name__, skip[test]), flush=True)
            continue
        try:
            test()
            print("ok %d - %s" % (i, test.__name__), flush=True)
        except Exception:
            failed += 1
            print("not ok %d - %s" % (i, test.__name__))
            print("".join("# %s\n" % line for line in traceback.format_exc().splitlines()),
                  flush=True)
    sys.exit(1 if failed else 0)

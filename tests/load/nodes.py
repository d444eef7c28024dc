# Four nodes, each a network namespace with one group, and a fifth with the broker: encrypted, on a
# bridge of their own. Redis is on a socket file, and on loopback for clients.
import os
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from lib import BIN, Redis, run

NET, HOST = "10.83.0.%d", 100


def ip(*words):
    p = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert p.returncode == 0, "ip %s: %s (network namespaces need root)" % (" ".join(words),
                                                                          p.stderr)


class Nodes:
    """Stands where lib.Up does: `url`, `redis`, `penstock`, `stop`."""

    def __init__(self, model, n_groups, *flags):
        self.model, self.n, self.flags = model, n_groups, flags
        self.tag = "ps%d" % os.getpid()
        self.processes, self.spaces = [], []

    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="penstock-load-")
        self.allow = os.path.join(self.folder, "allow")
        os.mkdir(self.allow)
        self.server = Redis()
        self.redis, self.url = self.server.redis, "redis://127.0.0.1:%d" % self.server.port
        try:
            self.wire()
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def space(self, name):
        ip("netns", "add", name)
        self.spaces.append(name)
        ip("-n", name, "link", "set", "lo", "up")
        return name

    def wire(self):
        hub = self.space(self.tag + "b")
        ip("-n", hub, "link", "add", "br0", "type", "bridge")
        ip("-n", hub, "addr", "add", NET % HOST + "/24", "dev", "br0")
        ip("-n", hub, "link", "set", "br0", "up")
        for i in range(self.n):
            node = self.space("%sn%d" % (self.tag, i))
            ip("link", "add", "e0", "netns", node, "type", "veth", "peer", "name", "p%d" % i,
               "netns", hub)
            ip("-n", node, "addr", "add", NET % (i + 1) + "/24", "dev", "e0")
            ip("-n", node, "link", "set", "e0", "up")
            ip("-n", hub, "link", "set", "p%d" % i, "master", "br0", "up")

    def key(self, name):
        assert run("keygen", "--dir", self.folder, name)[0] == 0
        return os.path.join(self.folder, name + ".key")

    def spawn(self, space, name, *command):
        log = open(os.path.join(self.folder, name + ".log"), "w")
        self.processes.append(subprocess.Popen(["ip", "netns", "exec", space, *command],
                                               stderr=log, stdout=log))

    def start(self):
        endpoint = "tcp://%s:7300" % (NET % HOST)
        self.spawn(self.spaces[0], "broker", os.path.join(BIN, "penstock-broker"), "--redis",
                   self.server.url, "--model", self.model, "--listen", endpoint, "--key",
                   self.key("broker"), "--allow", self.allow, *self.flags)
        for i in range(self.n):
            key = self.key("node-%d" % i)
            shutil.copy(key.replace(".key", ".pub"), self.allow)
            self.spawn(self.spaces[i + 1], "group-%d" % i, os.path.join(BIN, "penstock-worker"),
                       "--broker", endpoint, "--model", self.model, "--bind", NET % (i + 1),
                       "--device-memory", "1GiB", "--threads", "1", "--name", "group-%d" % i,
                       "--key", key, "--broker-key", os.path.join(self.folder, "broker.pub"))
        until = time.monotonic() + 60
        while self.log().count("event=serving") < self.n // 2:
            assert time.monotonic() < until, self.log()[-3000:]
            time.sleep(0.1)

    def log(self):
        with open(os.path.join(self.folder, "broker.log")) as f:
            return f.read()

    def group_logs(self):
        texts = []
        for i in range(self.n):
            with open(os.path.join(self.folder, "group-%d.log" % i)) as f:
                texts.append(f.read())
        return "\n".join(texts)

    def penstock(self, command, *args, **kwargs):
        return run(command, "--redis", self.url, *args, **kwargs)

    def stop(self):
        for p in reversed(self.processes):
            p.terminate()
        for p in self.processes:
            p.wait(60)
        self.processes = []
        for name in self.spaces:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        self.spaces = []
        self.server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        return 0

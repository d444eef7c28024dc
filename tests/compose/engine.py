# A Docker engine for the test: the one that runs, or one of the test's own, in folders of its own,
# which ends with the test. And the base image, where no registry is asked.
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BASE = "debian:trixie-slim"
ENGINE_SECONDS = 60
PULL_SECONDS = 180
DEBOOTSTRAP_SECONDS = 400


class Missing(Exception):
    """Why the test can't be run here."""


def output(*words, **kwargs):
    return subprocess.run(words, capture_output=True, text=True, **kwargs)


def docker(*words, check=True, **kwargs):
    p = output("docker", *words, **kwargs)
    if check and p.returncode != 0:
        raise AssertionError("docker %s: %s" % (" ".join(words), p.stderr[-3000:]))
    return p.stdout.strip()


def answers():
    try:
        p = output("docker", "info", "--format", "{{.ServerVersion}}", timeout=30)
        return p.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def apt(format, *filters):
    p = output("apt-get", "indextargets", "--format", format, "Created-By: Packages", *filters)
    return p.stdout.split("\n") if p.returncode == 0 else []


class Engine:
    """Use as a context; raises Missing with the reason where there is no engine to be had."""

    def __init__(self):
        self.process = self.folder = self.data = self.rules = None

    def __enter__(self):
        if shutil.which("docker") is None:
            raise Missing("there is no docker command")
        if answers():
            print("# the engine that runs here, %s" % docker("version", "--format",
                                                             "{{.Server.Version}}"))
            return self
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        if shutil.which("dockerd") is None:
            raise Missing("no Docker engine answers, and there is no dockerd to start")
        if os.geteuid() != 0:
            raise Missing("no Docker engine answers, and only root may start one")
        self.folder = tempfile.mkdtemp(prefix="penstock-docker-")
        os.makedirs(os.path.join(ROOT, "build"), exist_ok=True)
        self.data = tempfile.mkdtemp(prefix="docker-", dir=os.path.join(ROOT, "build"))
        self.had_bridge = os.path.exists("/sys/class/net/docker0")
        saved = output("iptables-save") if shutil.which("iptables-save") else None
        self.rules = saved.stdout if saved and saved.returncode == 0 else None
        log = open(os.path.join(self.folder, "log"), "w")
        endpoint = "unix://%s/sock" % self.folder
        self.process = subprocess.Popen(
            ["dockerd", "--data-root", self.data, "--exec-root", self.folder + "/exec", "--pidfile",
             self.folder + "/pid", "--host", endpoint, "--mtu", str(self.mtu())],
            stdout=log, stderr=subprocess.STDOUT)
        os.environ["DOCKER_HOST"] = endpoint
        until = time.monotonic() + ENGINE_SECONDS
        while not answers():
            if self.process.poll() is not None or time.monotonic() > until:
                with open(log.name) as f:
                    last = ([line for line in f if "level=" in line] or ["no word in its log"])[-1]
                raise Missing("dockerd cannot be started here: %s" % last.strip()[-300:])
            time.sleep(0.2)
        print("# an engine of the test's own, %s" % docker("version", "--format",
                                                           "{{.Server.Version}}"))

    @staticmethod
    def mtu():
        """Of the way out, which the bridge must not exceed."""
        p = output("ip", "-json", "route", "get", "192.0.2.1")
        try:
            device = json.loads(p.stdout)[0]["dev"]
            with open("/sys/class/net/%s/mtu" % device) as f:
                return min(1500, int(f.read()))
        except (ValueError, LookupError, OSError):
            return 1500

    def stop(self):
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(90)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            if not self.had_bridge:
                output("ip", "link", "del", "docker0")
            if self.rules is not None:
                output("iptables-restore", input=self.rules)
            # dockerd leaves the network namespace of containers on the host's own network mounted.
            output("umount", os.path.join(self.folder, "exec", "netns", "default"))
        for folder in (self.folder, self.data):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def base(self):
        """Sees to it that the base image is there."""
        if output("docker", "image", "inspect", BASE).returncode == 0:
            return
        why = "it was not asked: the engine is the test's own"
        if self.process is None:
            try:
                p = output("docker", "pull", "-q", BASE, timeout=PULL_SECONDS)
                why = p.stderr.strip()[-200:]
            except subprocess.TimeoutExpired:
                why = "no answer within %d s" % PULL_SECONDS
            if output("docker", "image", "inspect", BASE).returncode == 0:
                return
        self.bootstrap(why)

    def bootstrap(self, why):
        mirrors = [line.split(" ")[0] for line in apt("$(REPO_URI) $(LABEL)")
                   if line.endswith(" Debian")]
        if not mirrors or shutil.which("debootstrap") is None or os.geteuid() != 0:
            raise Missing("no %s: the registry: %s; and debootstrap wants root, a Debian mirror in "
                          "apt's settings, and to be installed" % (BASE, why))
        kept = os.path.join(ROOT, "build", "compose-base.tar")
        if not os.path.exists(kept):
            begun = time.monotonic()
            tree = tempfile.mkdtemp(prefix="debian-", dir=os.path.join(ROOT, "build"))
            try:
                p = output("debootstrap", "--variant=minbase", "trixie", tree, mirrors[0],
                           timeout=DEBOOTSTRAP_SECONDS, env={**os.environ, **proxies()})
                if p.returncode != 0:
                    raise Missing("debootstrap: %s" % (p.stdout + p.stderr).strip()[-300:])
                subprocess.run(["tar", "-C", tree, "--exclude=./var/cache/apt/archives/*.deb",
                                "--exclude=./var/lib/apt/lists/*", "--exclude=./usr/share/doc/*",
                                "--exclude=./usr/share/locale/*", "--exclude=./usr/share/man/*",
                                "-cf", kept + ".new", "."], check=True)
            finally:
                shutil.rmtree(tree, ignore_errors=True)
            os.rename(kept + ".new", kept)
            print("# base image by debootstrap: %.0f s" % (time.monotonic() - begun))
        docker("import", kept, BASE)


def proxies():
    """What apt is told to go through, as the environment has it."""
    found = {}
    for scheme in ("http", "https"):
        p = output("apt-config", "shell", "P", "Acquire::%s::Proxy" % scheme)
        value = p.stdout.strip()[3:-1] if p.stdout.startswith("P='") else ""
        if value and value != "DIRECT":
            found[scheme + "_proxy"] = value
    return found

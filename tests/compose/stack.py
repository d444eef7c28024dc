# A stack of docker/compose*.yaml as the test sees it: started by either implementation of Compose,
# under a project name, images and ports of its own; its containers looked at, and killed.
import json
import os
import re
import select
import shutil
import signal
import tempfile
import time

from engine import ROOT, Missing, docker, output

FILES = os.path.join(ROOT, "docker")
IMAGES = "penstock-test-%d" % os.getpid()
UP_SECONDS = 180


def implementations():
    """Compose v2 and docker-compose 1.29, as far as they are here: words of the command."""
    found = []
    if output("docker", "compose", "version").returncode == 0:
        found.append(["docker", "compose"])
    if shutil.which("docker-compose"):
        version = re.findall(r"\d+\.\d+", output("docker-compose", "version", "--short").stdout)
        if version and tuple(map(int, version[0].split("."))) >= (1, 29):
            found.append(["docker-compose"])
    if not found:
        raise Missing("there is neither Compose v2 nor docker-compose 1.29")
    return found


def until(what, seconds, say):
    """Asks until `what` is true, twice a second; its value."""
    end = time.monotonic() + seconds
    while True:
        got = what()
        if got:
            return got
        if time.monotonic() > end:
            raise AssertionError(say() if callable(say) else say)
        select.select([], [], [], 0.5)


class Stack:
    def __init__(self, compose, name, *files, **settings):
        self.folder = tempfile.mkdtemp(prefix="penstock-compose-")
        self.env = os.path.join(self.folder, "env")
        self.settings = {"PENSTOCK_IMAGES": IMAGES}
        self.set(**settings)
        self.project = "%s-%s" % (IMAGES, name)
        self.words = [*compose, "--project-name", self.project, "--env-file", self.env]
        for file in files:
            self.words += ["-f", os.path.join(FILES, file)]

    def set(self, **settings):
        self.settings.update(settings)
        with open(self.env, "w") as f:
            f.writelines("%s=%s\n" % pair for pair in self.settings.items())

    def compose(self, *words, seconds=300):
        # The settings are the env file's alone, not those of whoever runs the test.
        env = {k: v for k, v in os.environ.items() if not k.startswith("PENSTOCK_")}
        p = output(*self.words, *words, timeout=seconds, env=env)
        assert p.returncode == 0, "%s: %s" % (" ".join(words), (p.stdout + p.stderr)[-3000:])
        return p.stdout

    def container(self, service):
        ids = docker("ps", "-aq", "--filter", "label=com.docker.compose.project=" + self.project,
                     "--filter", "label=com.docker.compose.service=" + service).split()
        assert len(ids) == 1, (service, ids)
        return ids[0]

    def inspect(self, service):
        return json.loads(docker("inspect", self.container(service)))[0]

    def execute(self, service, *words):
        return docker("exec", self.container(service), *words)

    def say(self, *services):
        """What the containers say: for a failure's text."""
        text = ""
        for service in services:
            try:
                state = self.inspect(service)
            except AssertionError:
                text += "%s has no container\n" % service
                continue
            p = output("docker", "logs", "--tail", "12", state["Id"])
            text += "%s: %s\n%s\n" % (service, json.dumps(state["State"])[:1500],
                                      (p.stdout + p.stderr)[-1500:])
        return text

    def healthy(self, *services, seconds=UP_SECONDS):
        def all_are():
            states = [self.inspect(s)["State"] for s in services]
            return all(s["Running"] and s["Health"]["Status"] == "healthy" for s in states)
        until(all_are, seconds, lambda: self.say(*services))

    def kill(self, service):
        """kill -9 of its process from outside; waits until Docker has started it again."""
        before = self.inspect(service)
        pid = before["State"]["Pid"]
        if os.geteuid() == 0 and os.path.exists("/proc/%d" % pid):
            os.kill(pid, signal.SIGKILL)
        else:
            docker("run", "--rm", "--privileged", "--pid", "host", "--user", "0",
                   IMAGES + "-broker", "sh", "-c", "kill -9 %d" % pid)
        until(lambda: self.inspect(service)["RestartCount"] > before["RestartCount"], 60,
              "%s was not started again" % service)
        self.healthy(service)

    def end(self):
        try:
            self.compose("down", "-v", "--remove-orphans")
        except AssertionError as e:
            print("# %s is left: %s" % (self.project, e))
        shutil.rmtree(self.folder, ignore_errors=True)

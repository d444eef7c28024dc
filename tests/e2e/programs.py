# The conformance programs of tools/clients, as commands: built where they must be.
import glob
import os
import shutil
import subprocess

from lib import BIN, ROOT

CLIENTS = os.path.join(ROOT, "tools", "clients")
BUILD = os.path.join(os.path.dirname(BIN), "clients")  # kept between runs


class Unavailable(Exception):
    """Why a client cannot be run here."""


def quietly(*command, seconds=300, **kwargs):
    try:
        p = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                           timeout=seconds, **kwargs)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise Unavailable("%s: %s" % (command[0], type(e).__name__))
    if p.returncode != 0:
        raise Unavailable("%s: %s" % (command[0], (p.stderr + p.stdout).strip()[-200:]))
    return p.stdout


def built(*command, **kwargs):
    """A compiler that is there has to succeed."""
    p = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                       timeout=300, **kwargs)
    assert p.returncode == 0, "%s: %s" % (" ".join(command), (p.stderr + p.stdout)[-3000:])


def flags(*names):
    return quietly("pkg-config", "--cflags", "--libs", *names).split()


def python(*more):
    return ["/usr/bin/python3", os.path.join(CLIENTS, "python", "conformance.py"), *more]


def shell():
    if not shutil.which("jq"):
        raise Unavailable("jq is not installed")
    return [os.path.join(CLIENTS, "shell", "conformance.sh")]


def c():
    folder = os.path.join(CLIENTS, "c")
    msgpack = "msgpack-c"
    if subprocess.run(["pkg-config", "--exists", msgpack]).returncode != 0:
        msgpack = "msgpack"
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wconversion", "-Wno-sign-conversion"]
    for program in ("example", "conformance"):
        sources = [os.path.join(folder, f) for f in (program + ".c", "penstock_client.c")]
        built("cc", "-std=gnu17", "-O1", "-g", "-fsanitize=address,undefined", *warnings, *sources,
              "-o", os.path.join(BUILD, program + "-c"), *flags("hiredis", msgpack, "jansson"))
    return [os.path.join(BUILD, "conformance-c")]


def node():
    if not shutil.which("node") or not shutil.which("npm"):
        raise Unavailable("node and npm are not installed")
    folder = os.path.join(BUILD, "node")
    shutil.copytree(os.path.join(CLIENTS, "node"), folder, dirs_exist_ok=True)
    if not os.path.isdir(os.path.join(folder, "node_modules")):
        quietly("npm", "install", "--no-audit", "--no-fund", "--no-package-lock", cwd=folder,
                seconds=120)
    return ["node", os.path.join(folder, "conformance.js")]


def ruby():
    if not shutil.which("ruby"):
        raise Unavailable("ruby is not installed")
    quietly("ruby", "-e", "require 'redis'; require 'msgpack'")
    return ["ruby", "-w", os.path.join(CLIENTS, "ruby", "conformance.rb")]


def go():
    """Built with Debian's packages alone: in a GOPATH, and nothing is fetched."""
    if not shutil.which("go"):
        raise Unavailable("go is not installed")
    path, source = os.path.join(BUILD, "go"), os.path.join(CLIENTS, "go")
    folder = os.path.join(path, "src", "penstock")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("go.mod", "go.sum"))
    env = {**os.environ, "GOPATH": path + ":/usr/share/gocode", "GO111MODULE": "off",
           "GOFLAGS": "", "GOCACHE": os.path.join(path, "cache")}
    for package in ("redigo/redis", "msgpack/v5"):
        if not glob.glob("/usr/share/gocode/src/github.com/*/" + package):
            raise Unavailable("no Debian package has the Go package " + package)
    wrong = quietly("gofmt", "-l", source).split()
    assert not wrong, "not as gofmt writes it: %s" % wrong
    built("go", "vet", "./...", cwd=folder, env=env)
    for program in ("example", "conformance"):
        built("go", "build", "-o", os.path.join(BUILD, program + "-go"), "./" + program,
              cwd=folder, env=env)
    return [os.path.join(BUILD, "conformance-go")]


LANGUAGES = {"python": python, "asyncio": lambda: python("--asyncio"), "shell": shell, "c": c,
             "node": node, "ruby": ruby, "go": go}

"""What the style tests share: the source files, and TAP lines. Run by tests/run."""
import os

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FOLDERS = ("common", "kernels", "workers", "broker", "tools", "tests", "docker")
SKIP = ("fixtures", "node_modules", "__pycache__")


def files(*endings, folders=FOLDERS):
    """Paths below ROOT of the files with these endings."""
    found = []
    for folder in folders:
        for path, inside, names in os.walk(os.path.join(ROOT, folder)):
            inside[:] = sorted(d for d in inside if d not in SKIP and not d.startswith("build"))
            found += [os.path.relpath(os.path.join(path, n), ROOT) for n in sorted(names)
                      if n.endswith(endings)]
    return found


def lines(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as f:
        return f.read().split("\n")[:-1]


class Tap:
    """One test a rule: it passes if nothing breaks the rule."""

    def __init__(self):
        self.n = self.failed = 0

    def rule(self, name, broken):
        self.n += 1
        broken = list(broken)
        for what in broken:
            print("# " + what)
        self.failed += bool(broken)
        print(f"{'not ' if broken else ''}ok {self.n} - {name}")

    def end(self):
        print(f"1..{self.n}")
        raise SystemExit(1 if self.failed else 0)

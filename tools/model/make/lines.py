"""Log lines and support tickets with the JSON that belongs to them, generated from a seed.

An event (level, service, host, code, duration) is drawn first, then written down in one of many
ways among numbers and names that do not matter. What a line does not tell is null in its answer:
{"level":"error","service":"billing-api","host":"web-12","code":503,"duration_ms":1240}
"""
import json
import random
import zlib
from dataclasses import dataclass

LEVELS = {
    "debug": ["DEBUG", "debug", "DBG", "D", "trace", "TRACE", "Debug", "fine"],
    "info": ["INFO", "info", "I", "notice", "NOTICE", "Info", "information"],
    "warn": ["WARN", "WARNING", "warn", "warning", "W", "Warning"],
    "error": ["ERROR", "error", "ERR", "err", "E", "Error", "severe", "SEVERE"],
    "fatal": [
        "FATAL",
        "fatal",
        "CRITICAL",
        "CRIT",
        "crit",
        "F",
        "emerg",
        "PANIC",
        "panic",
        "alert",
    ],
}
SERVICES = """
accounts analytics archive assets audit auth backup balancer batch billing blog broker builder cache
cart catalog cdn chat checkout cms compliance consul content coupons crawler cron dashboard deployer
dhcp dns dockerd docs downloads edge envoy etcd etl exporter feeds firmware fleet forum fraud
gateway geo haproxy helpdesk identity importer indexer ingest inventory invoices kafka kubelet ldap
ledger licensing limiter login mailer maps messages metrics monitor mysqld nginx notifications
orders parser payments pipeline planner postgres presence pricing profiles proxy queue quota
rabbitmq ranking recommender redis registry relay replicator reports returns reviews risk router
routing scheduler search secrets sensors sessions shipping sshd storage stock survey sync systemd
tax telemetry thumbnails tickets tracker transcoder translate updater uploads users vault video
voting wallet warehouse weather webhook wiki worker
""".split()
SUFFIXES = """
-api -worker -svc -service -db -v2 -proxy -ui -job _api _worker d
""".split()
HOST_STEMS = """
web app db node srv host worker cache edge prod stage api gw lb mq vm box core rack k8s build store
mail batch gpu proxy
""".split()
REGIONS = """
eu-west-1 eu-north-2 us-east-1 us-west-2 ap-south-1 fra1 ams2 nyc3 dc1 dc2
""".split()
DOMAINS = """
example.com example.net internal local corp.example prod.example.net lan cluster
""".split()
USERS = """
alice bob carol dave erin frank grace heidi ivan judy mallory nina oscar peggy quentin rupert sybil
trent ursula victor wendy xavier yvonne zoe
""".split()
HTTP_CODES = [
    int(code)
    for code in """
200 201 202 204 301 302 304 400 401 403 404 405 408 409 410 413 415 422 423 429 499 500 501 502 503
504 507
""".split()
]
PATHS = """
/ /api/v1/users /api/v2/orders /health /login /cart/items /search /img/logo.png /api/v1/items
/metrics /docs/index.html /upload /graphql /v3/jobs /static/app.js
""".split()
MESSAGES = """\
upstream timed out|connection refused by {ip}:{port}|connection reset by peer|retry {small} of 5
request {hex} failed|queue length is {number}|user {number} not found|wrote {number} bytes
deadlock detected|disk {percent}% full|certificate expires in {small} days|cache miss
payload too large|token expired|checksum mismatch in block {number}|slow query|out of memory
worker {small} restarted|cannot open file|job {hex} finished|batch of {number} rows committed
health check failed|rate limit reached for {user}|session {hex} closed|config reloaded
leader election started|replica lags {number} rows behind|no route to host
permission denied for {user}|unexpected end of input|invalid signature|circuit breaker opened
GC pause|handshake failed with {ip}|lock wait exceeded|stale cursor {hex}|backlog at {percent}%
dropped {number} packets|transaction {number} rolled back|too many open files|page not found
bad gateway|request done|index rebuilt|client {ip} disconnected|read-only file system
thread pool exhausted|message {hex} redelivered|accepted login of {user} from {ip}
snapshot {number} written|dependency not ready|schema version {small} applied|sent {number} mails
partition {small} reassigned|flush complete|timeout waiting for lock""".replace(
    "\n", "|"
).split(
    "|"
)
MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]


@dataclass
class Event:
    level: str
    service: str
    host: str | None
    code: int | None
    duration_ms: int | None

    def answer(self):
        return json.dumps(self.__dict__, separators=(",", ":"))


def made_up_word(r):
    return "".join(r.choice(SYLLABLES) for _ in range(r.choice((2, 2, 3)))) + r.choice(
        ["", "", "n", "r", "x"]
    )


def draw_service(r):
    name = made_up_word(r) if r.random() < 0.12 else r.choice(SERVICES)
    return name + (r.choice(SUFFIXES) if r.random() < 0.35 else "")


def draw_ip(r):
    first = r.choice(["10", "192.168", "172.16", str(r.randint(11, 223))])
    return ".".join([first] + [str(r.randint(0, 255)) for _ in range(3 - first.count("."))])


def draw_hex(r, n):
    return "".join(r.choice("0123456789abcdef") for _ in range(n))


def draw_host(r):
    kind = r.random()
    stem = made_up_word(r) if r.random() < 0.1 else r.choice(HOST_STEMS)
    if kind < 0.10:
        return draw_ip(r)
    if kind < 0.15:
        return "ip-" + draw_ip(r).replace(".", "-")
    if kind < 0.25:
        return f"{r.choice(SERVICES)}-{draw_hex(r, r.choice((8, 9, 10)))}-{draw_hex(r, 5)}"
    if kind < 0.30:
        return f"{made_up_word(r)}"
    number = r.choice(
        [
            str(r.randint(0, 9)),
            str(r.randint(1, 99)),
            f"{r.randint(0, 99):02}",
            str(r.randint(100, 999)),
        ]
    )
    host = stem + r.choice(["-", "-", "", ""]) + number
    if kind > 0.75:
        host += "." + r.choice(REGIONS if r.random() < 0.5 else DOMAINS)
    elif kind > 0.65:
        host = r.choice(REGIONS) + "-" + host
    return host


def draw_event(r):
    code = None
    if r.random() < 0.85:
        kind = r.random()
        code = (
            r.choice(HTTP_CODES)
            if kind < 0.6
            else r.randint(1, 255)
            if kind < 0.8
            else r.randint(256, 9999)
        )
    duration = None
    if r.random() < 0.85:
        duration = int(10 ** r.uniform(0, 4.8))
        kind = r.random()
        if kind < 0.3:
            duration = max(1, round(duration, -2 if duration > 999 else -1))
        elif kind < 0.35:
            duration = 60000 * r.randint(1, 10)
    host = draw_host(r) if r.random() < 0.93 else None
    return Event(r.choice(list(LEVELS)), draw_service(r), host, code, duration)


def draw_message(r):
    text = r.choice(MESSAGES)
    return (
        text.format(
            ip=draw_ip(r),
            port=r.choice([80, 443, 5432, 6379, 8080, 9092]),
            small=r.randint(1, 5),
            hex=draw_hex(r, r.choice((6, 8, 12))),
            number=r.randint(1, 99999),
            user=r.choice(USERS),
            percent=r.randint(50, 99),
        )
        if "{" in text
        else text
    )


def clock(r):
    return f"{r.randint(0, 23):02}:{r.randint(0, 59):02}:{r.randint(0, 59):02}"


def date(r):
    return f"{r.randint(2019, 2026)}-{r.randint(1, 12):02}-{r.randint(1, 28):02}"


def iso_time(r):
    fraction = r.choice(["", f".{r.randint(0, 999):03}", f",{r.randint(0, 999):03}"])
    return date(r) + r.choice(" T") + clock(r) + fraction + r.choice(["", "", "Z", "+00:00"])


def level_word(r, event, least=1):
    return r.choice([w for w in LEVELS[event.level] if len(w) >= least])


def seconds(ms):
    return f"{ms / 1000:.3f}".rstrip("0").rstrip(".")


def duration_text(r, ms):
    """Milliseconds, or the same time in seconds or whole minutes."""
    if r.random() < 0.5:
        return f"{ms}{r.choice(['ms', 'ms', ' ms', ' msec', ' milliseconds'])}"
    if ms % 60000 == 0:
        return f"{ms // 60000}{r.choice([' min', 'm', ' minutes'])}"
    return seconds(ms) + r.choice(["s", "s", " s", " sec", " seconds"])


def pairs_text(r, pairs):
    """key=value pairs in any order."""
    r.shuffle(pairs)
    return " ".join(f"{k}={v}" for k, v in pairs)


def took(r, event):
    if event.duration_ms is None:
        return ""
    text = duration_text(r, event.duration_ms)
    return r.choice(
        [
            f" after {text}",
            f" in {text}",
            f" took {text}",
            f" ({text})",
            f" duration={text}",
            f" elapsed={text}",
            f", {text}",
            f" latency={text}",
            f" [{text}]",
        ]
    )


def coded(r, event):
    if event.code is None:
        return ""
    return r.choice(
        [
            f" code={event.code}",
            f" status={event.code}",
            f" ({event.code})",
            f" HTTP {event.code}",
            f" error {event.code}",
            f" errno {event.code}",
            f" rc={event.code}",
            f" exit code {event.code}",
            f" status: {event.code}",
            f" code {event.code}",
            f" [{event.code}]",
        ]
    )


def details(r, event):
    parts = [took(r, event), coded(r, event)]
    if parts[0].startswith((" (", " [")) and parts[1].startswith((" (", " [")):
        parts[1] = f" code={event.code}"
    r.shuffle(parts)
    return "".join(parts)


def syslog(r, e):
    e.host = e.host or draw_host(r)
    day = f"{r.choice(MONTHS)} {r.randint(1, 28):2}"
    pid = r.choice([f"[{r.randint(2, 65535)}]", ""])
    return (
        f"{day} {clock(r)} {e.host} {e.service}{pid}: {level_word(r, e, 3)}: "
        f"{draw_message(r)}{details(r, e)}"
    )


def bracketed(r, e):
    host = f" host={e.host}" if e.host else ""
    where = r.choice([f"[{e.service}]", f"({e.service})", f"{e.service}:", f"<{e.service}>"])
    return (
        f"{iso_time(r)} {r.choice(['{}', '[{}]', '{}:']).format(level_word(r, e))} {where}{host} "
        f"{draw_message(r)}{details(r, e)}"
    )


def logfmt(r, e):
    pairs = [
        (r.choice(["level", "lvl", "severity"]), level_word(r, e)),
        (r.choice(["service", "svc", "app", "component"]), e.service),
        ("msg", f'"{draw_message(r)}"'),
    ]
    if e.host:
        pairs.append((r.choice(["host", "node", "hostname", "instance"]), e.host))
    if e.code is not None:
        pairs.append((r.choice(["code", "status", "errno", "exit"]), e.code))
    if e.duration_ms is not None:
        if r.random() < 0.3:
            pairs.append((r.choice(["duration_ms", "elapsed_ms", "took_ms"]), e.duration_ms))
        else:
            pairs.append(
                (
                    r.choice(["dur", "duration", "elapsed", "latency", "took"]),
                    duration_text(r, e.duration_ms).replace(" ", ""),
                )
            )
    if r.random() < 0.4:
        pairs.append((r.choice(["req", "trace", "id"]), draw_hex(r, 8)))
    if r.random() < 0.3:
        pairs.append((r.choice(["pid", "bytes", "attempt", "line"]), r.randint(1, 9999)))
    return (f"ts={iso_time(r).replace(' ', 'T')} " if r.random() < 0.6 else "") + pairs_text(
        r, pairs
    )


def access_log(r, e):
    """The level follows from the status, the duration stands in seconds at the end."""
    e.code = r.choice(HTTP_CODES)
    e.level = "info" if e.code < 400 else "warn" if e.code < 500 else "error"
    e.host = e.host or draw_host(r)
    stamp = f"[{r.randint(1, 28):02}/{r.choice(MONTHS)}/{r.randint(2019, 2026)}:{clock(r)} +0000]"
    tail = f" {e.duration_ms / 1000:.3f}" if e.duration_ms is not None else " -"
    user = r.choice(["-", r.choice(USERS)])
    verb = r.choice(["GET", "GET", "POST", "PUT", "DELETE", "HEAD"])
    return (
        f'{draw_ip(r)} - {user} {stamp} "{verb} {r.choice(PATHS)} HTTP/1.1" '
        f'{e.code} {r.randint(0, 99999)}'
        f"{tail} {e.service}@{e.host}"
    )


def piped(r, e):
    mark = r.choice(["|", " | ", ";", ",", "\t"])
    return mark.join(
        [
            iso_time(r).replace(",", "."),
            level_word(r, e),
            e.service,
            e.host or "-",
            "-" if e.code is None else str(e.code),
            "-" if e.duration_ms is None else duration_text(r, e.duration_ms),
            draw_message(r),
        ]
    )


def json_log(r, e):
    """A JSON log of somebody else's keys."""
    pairs = [
        (r.choice(["severity", "lvl", "level", "log.level"]), level_word(r, e)),
        (r.choice(["logger", "app", "service.name", "component"]), e.service),
        ("message", draw_message(r)),
    ]
    if e.host:
        pairs.append((r.choice(["hostname", "node", "host", "server"]), e.host))
    if e.code is not None:
        pairs.append((r.choice(["status", "code", "http_status", "error_code"]), e.code))
    if e.duration_ms is not None:
        pairs.append(
            r.choice(
                [
                    ("elapsed_ms", e.duration_ms),
                    ("took", duration_text(r, e.duration_ms)),
                    ("seconds", e.duration_ms / 1000),
                    ("latency_ms", e.duration_ms),
                ]
            )
        )
    if r.random() < 0.5:
        pairs.append(
            r.choice(
                [("trace_id", draw_hex(r, 8)), ("pid", r.randint(2, 65535)), ("time", iso_time(r))]
            )
        )
    r.shuffle(pairs)
    return json.dumps(dict(pairs), separators=r.choice([(",", ":"), (", ", ": ")]))


def dashed(r, e):
    host = f" on {e.host}" if e.host else ""
    return (
        f"{iso_time(r)} - {e.service} - {level_word(r, e)} - {draw_message(r)}{host}{details(r, e)}"
    )


def klog(r, e):
    e.level = r.choice(["info", "warn", "error", "fatal"])
    host = f' node="{e.host}"' if e.host else ""
    tail = "" if e.duration_ms is None else f' duration="{duration_text(r, e.duration_ms)}"'
    code = "" if e.code is None else f" code={e.code}"
    return (
        f"{e.level[0].upper()}{r.randint(1, 12):02}{r.randint(1, 28):02} "
        f"{clock(r)}.{r.randint(0, 999999):06} {r.randint(1, 9)} "
        f'{e.service}.go:{r.randint(10, 999)}] "{draw_message(r)}"{host}{code}{tail}'
    )


def alert(r, e):
    where = f" on {e.host}" if e.host else ""
    parts = []
    if e.duration_ms is not None:
        parts.append(f"latency {duration_text(r, e.duration_ms)}")
    if e.code is not None:
        parts.append(r.choice([f"code {e.code}", f"status {e.code}", f"HTTP {e.code}"]))
    parts.append(f"severity={level_word(r, e, 3)}")
    r.shuffle(parts)
    state = r.choice(["FIRING", "RESOLVED", "ALERT", "firing"])
    return f"[{state}] {e.service}{where}: {', '.join(parts)}" + r.choice(
        ["", f", since {clock(r)}", f" #{r.randint(1, 9999)}"]
    )


GREETINGS = [
    "Hi,",
    "Hello,",
    "Hello team,",
    "Hi all,",
    "Good morning,",
    "Hey,",
    "Dear support,",
    "",
]
THANKS = [
    "Thanks.",
    "Thank you!",
    "Please help.",
    "Regards, {}",
    "Best, {}",
    "Please have a look.",
    "",
    "",
]
PROBLEMS = {
    "debug": [
        "I switched on tracing for {s}",
        "we collect debug output of {s}",
        "here is a debug trace of {s}",
    ],
    "info": [
        "just to let you know, {s} was updated",
        "a question about {s}",
        "for your information, {s} was restarted",
        "no problem, only a note on {s}",
    ],
    "warn": [
        "{s} is slower than usual",
        "{s} sometimes answers late",
        "{s} looks a bit unstable",
        "we see warnings from {s}",
    ],
    "error": [
        "{s} fails",
        "{s} returns errors",
        "{s} does not work",
        "I cannot use {s}",
        "we get errors from {s}",
    ],
    "fatal": [
        "{s} is down for everybody",
        "{s} has crashed and we lose orders",
        "total outage of {s}",
        "{s} is dead, this is an emergency",
    ],
}


def ticket(r, e):
    """A few sentences by a person; the level lies in the words."""
    name = r.choice(["{}", "{}", "the {} service", "our {}"]).format(e.service)
    problem = r.choice(PROBLEMS[e.level]).format(s=name)
    if e.host and r.random() < 0.5:
        problem += r.choice([" on ", " at ", " on host ", " on server "]) + e.host
        host = ""
    else:
        host = (
            r.choice(["The host is {}.", "It runs on {}.", "Server: {}.", "Machine {}."]).format(
                e.host
            )
            if e.host
            else ""
        )
    since = r.choice(["", "", f" since {clock(r)[:5]}", f" since {date(r)}", " since this morning"])
    code = (
        ""
        if e.code is None
        else r.choice(
            [
                "The code is {}.",
                "We see error {}.",
                "It says {}.",
                "Status {}.",
                "It ends with code {}.",
            ]
        ).format(e.code)
    )
    time = (
        ""
        if e.duration_ms is None
        else r.choice(
            [
                "It takes {}.",
                "A call takes about {}.",
                "Each request needs {}.",
                "It hangs for {}.",
                "We waited {}.",
            ]
        ).format(duration_text(r, e.duration_ms))
    )
    extra = r.choice(
        [
            "",
            "",
            "",
            f"Ticket {r.randint(1000, 99999)}.",
            f"My user is {r.choice(USERS)}.",
            f"{r.randint(2, 500)} customers called.",
            f"I tried {r.randint(2, 9)} times.",
            f"My address is {draw_ip(r)}.",
        ]
    )
    rest = [host, code, time, extra]
    r.shuffle(rest)
    parts = [
        r.choice(GREETINGS),
        problem + since + ".",
        *rest,
        r.choice(THANKS).format(r.choice(USERS)),
    ]
    return " ".join(part for part in parts if part)


WRITERS = [
    syslog,
    bracketed,
    logfmt,
    access_log,
    piped,
    json_log,
    dashed,
    klog,
    alert,
    ticket,
    ticket,
]
INSTRUCTION = "Extract JSON: "
OTHER_INSTRUCTIONS = [
    "Turn this log line into JSON: ",
    "Convert to JSON: ",
    "JSON please: ",
    "Extract JSON:\n",
]


def draw_line(r):
    """One (line, answer)."""
    event = draw_event(r)
    line = r.choice(WRITERS)(r, event)
    return line, event.answer()


def is_held_out(line):
    """One line in 64 is never trained on, by its checksum."""
    return zlib.crc32(line.encode()) % 64 == 0


def draw_training_line(r):
    while True:
        line, answer = draw_line(r)
        if not is_held_out(line):
            return line, answer


def held_out_lines(seed, n):
    r, found = random.Random(seed), {}
    while len(found) < n:
        line, answer = draw_line(r)
        if is_held_out(line):
            found[line] = answer
    return list(found.items())


def draw_prompt(r, line):
    """The user's message: mostly the plain instruction."""
    return (INSTRUCTION if r.random() < 0.7 else r.choice(OTHER_INSTRUCTIONS)) + line


if __name__ == "__main__":
    for line, answer in held_out_lines(1, 20):
        print(line, answer, sep="\n    ")

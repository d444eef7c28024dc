"""Jobs of any length into one pipeline, and what its books say while they run: for tests/e2e and
tests/load. Times, blocks and counts are those of the log: a head says when it took a sequence and
when that ended, a broker when it sent it."""
import os
import random
import re

from lib import job, patiently, result, wait_all

BLOCK = 64
READY = "ps:{default}:rdy:"


class Jobs:
    """{id: (prompt, output)}: `n` of any length from 2 to `context` tokens."""

    def __init__(self, n, context, vocabulary, seed=1):
        chance = random.Random(seed)
        self.context, self.vocabulary, self.lengths = context, vocabulary, {}
        for i in range(n):
            whole = chance.randint(2, context)
            prompt = chance.randint(1, whole - 1)
            self.lengths["mixed-%d" % i] = (prompt, whole - prompt)

    def blocks(self, id):
        return -(-sum(self.lengths[id]) // BLOCK)

    def message(self, id):
        prompt, output = self.lengths[id]
        ids = [(7 * len(id) + 3 * k + prompt) % (self.vocabulary - 2) + 2 for k in range(prompt)]
        return job(id, "tokens", {"tokens": ids, "max_tokens": output, "ignore_eos": True})

    def push_all(self, up):
        """All are admitted and none runs: the queue is paused."""
        ids = list(self.lengths)
        for i in range(0, len(ids), 500):
            up.redis.rpush("ps:{default}:in:default", *[self.message(k) for k in ids[i:i + 500]])
        while self.waiting(up) < len(ids):
            dead = patiently(lambda: up.redis.zcard("ps:{default}:dead"))
            assert dead == 0, "%d of the jobs were refused" % dead
            up.redis.xread({"ps:{default}:ev:default": "$"}, block=50)

    def waiting(self, up):
        return sum(up.redis.zcard(k) for k in up.redis.scan_iter(READY + "*"))

    def check_results(self, up, ended):
        """Each ended once, well, with exactly its tokens."""
        assert ended == {id: ["done"] for id in self.lengths}, {
            id: e for id, e in ended.items() if e != ["done"]}
        for id, (prompt, output) in self.lengths.items():
            got = result(up.redis, id)
            usage = got["usage"]
            assert got["status"] == "ok" and got["attempts"] == 1, (id, got)
            assert (usage["prompt"], usage["completion"]) == (prompt, output), (id, usage)


def events_of(log, jobs):
    """(ms, event, id) of `sent`, `accepted` and `ended`, in the order of the log's times. Of one
    millisecond ends come first, but for jobs that began in it."""
    found = re.findall(r"t=(\d+) \S+ who=\S+ event=(sent|accepted|ended) tenant=default "
                       r"id=(mixed-\d+) ", log)
    assert found and all(id in jobs.lengths for _, _, id in found)
    accepted = {id: t for t, e, id in found if e == "accepted"}
    order = {"sent": 1, "accepted": 2}

    def place(event):
        t, e, id = event
        return (t, order[e] if e in order else 3 if accepted[id] == t else 0)

    return [(int(t), e, id) for t, e, id in sorted(found, key=place)]


class Books:
    """What was reserved and promised, from those events."""

    def __init__(self, log, jobs, blocks):
        self.blocks, self.most_reserved, self.most_promised = blocks, 0, 0
        self.area, self.span, self.parts, self.full_from = 0.0, 0, [], None
        events = events_of(log, jobs)
        last_sent = max(t for t, e, _ in events if e == "sent")
        reserved = promised = 0
        before = None
        for t, event, id in events:
            n = jobs.blocks(id)
            # From when the pipeline was first full until nothing waited any more.
            if self.full_from is None and reserved >= 0.9 * blocks:
                self.full_from = t
            elif self.full_from is not None and before is not None:
                self.add(reserved, min(t, last_sent) - min(before, last_sent))
            before = t
            if event == "sent":
                promised += n
            elif event == "accepted":
                reserved += n
            else:
                reserved -= n
                promised -= n
            assert reserved >= 0 and promised >= 0, (t, event, id)
            self.most_reserved = max(self.most_reserved, reserved)
            self.most_promised = max(self.most_promised, promised)
        assert reserved == 0 and promised == 0, (reserved, promised)

    def add(self, reserved, ms):
        self.area += reserved * ms
        self.span += ms
        self.parts.append((reserved / self.blocks, ms))

    def mean(self):
        """Reserved of all blocks while a backlog was there."""
        return self.area / (self.span * self.blocks) if self.span else 0.0

    def at_least(self, part):
        """The part of that time in which so much or more was reserved."""
        return sum(ms for p, ms in self.parts if p >= part) / max(self.span, 1)


def log_of(up):
    with open(os.path.join(up.folder, "penstock.log")) as f:
        return f.read()


def pool_of(log):
    """(slots, blocks) of the pipeline that serves."""
    return tuple(int(n) for n in re.search(r"event=serving .*?slots=(\d+) .*?blocks=(\d+)",
                                           log).groups())


def run_all(up, jobs, seconds):
    """Pushes, lets them go, waits; the books."""
    assert up.penstock("pause")[0] == 0
    jobs.push_all(up)
    assert up.penstock("resume")[0] == 0
    ended = wait_all(up.redis, list(jobs.lengths), seconds)
    jobs.check_results(up, ended)
    log = log_of(up)
    return Books(log, jobs, pool_of(log)[1])

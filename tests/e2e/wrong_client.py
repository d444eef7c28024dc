# Clients that are wrong in one way each: what `penstock conformance producer` has to find out. The
# way is the first argument; with "none" it is the Python client as it is. FAULTS says which check
# finds which.
import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools",
                                "clients", "python"))
import conformance  # noqa: E402
import penstock  # noqa: E402
import redis  # noqa: E402

Plain, Text, Result = conformance.Plain, penstock._Text, penstock.Result
FAULTS = {}  # name: (function that makes it so, the check that finds it)


def fault(check):
    def add(fn):
        FAULTS[fn.__name__.replace("_", "-")] = (fn, check)
        return fn
    return add


def replace(owner, name, make):
    """owner.name becomes make(what it was)."""
    setattr(owner, name, make(getattr(owner, name)))


@fault("message")
def forgets_fields():
    replace(penstock.Job, "message",
            lambda was: lambda job: was(penstock.Job(job.op, job.body, job.id)))


@fault("message")
def packs_as_bin():
    replace(penstock, "_pack", lambda was: lambda value: was(
        {k.encode() if isinstance(k, str) else k: v for k, v in value.items()}))


@fault("text")
def knows_ascii_only():
    def ascii(value):
        if isinstance(value, str):
            return value.encode("ascii", "replace").decode()
        if isinstance(value, dict):
            return {k: ascii(v) for k, v in value.items()}
        return [ascii(v) for v in value] if isinstance(value, list) else value
    replace(penstock, "_pack", lambda was: lambda value: was(ascii(value)))


@fault("ids")
def makes_one_id():
    penstock.secrets.token_hex = lambda n: "always"


@fault("ids")
def makes_bad_ids():
    penstock.secrets.token_hex = lambda n: "no good: %d" % random.getrandbits(32)


@fault("end-before-wait")
def waits_from_now():
    def follow(was):
        def steps(self, job, *more):
            since = yield from self._last()
            return (yield from was(self, penstock.Job("", "", job.id, since=since), *more))
        return steps
    replace(penstock._Protocol, "_follow", follow)


@fault("end-after-wait")
def looks_once():
    replace(Plain, "wait", lambda was: lambda self, wish: Plain.result(self, wish))


@fault("end-long-ago")
def trusts_events_alone():
    def nothing(self, id):
        yield penstock._Do([("GET", id)])
    penstock._Protocol._read = nothing


@fault("event-dropped")
def sees_no_gap():
    replace(penstock, "_order", lambda was: lambda entry: (0,))


@fault("timeout")
def waits_for_ever():
    replace(penstock, "_left", lambda was: lambda until: penstock.BLOCK_MS)


@fault("unknown-fields")
def knows_every_field():
    def result(was):
        def read(data):
            r = was(data)
            if r and "x_of_future" in r.raw:
                raise KeyError("x_of_future")
            return r
        return read
    replace(penstock, "_result", result)


@fault("no-result")
def makes_up_results():
    replace(Plain, "result", lambda was: lambda self, wish: {
        **was(self, wish), "status": was(self, wish)["status"] or "error"})


@fault("duplicate")
def changes_the_body():
    replace(penstock.Job, "message", lambda was: lambda job: was(penstock.Job(
        job.op, {**job.body, "seed": random.getrandbits(32)}, job.id, job.fields)))


@fault("duplicate")
def enqueues_another():
    replace(penstock.Job, "message", lambda was: lambda job: was(penstock.Job(
        job.op, job.body, job.id + "-%d" % random.getrandbits(32), job.fields)))


@fault("conflict")
def knows_no_conflict():
    penstock.ENDS = ("done", "failed", "cancelled", "expired")


@fault("failure")
def hides_the_code():
    replace(conformance, "shown", lambda was: lambda id, r: {
        **was(id, r), "error": r and r.error and r.error["message"]})


@fault("cancel")
def never_cancels():
    penstock.Client.cancel = lambda self, job: None


@fault("big")
def counts_in_16_bits():
    def cut(body):
        return {**body, "messages": [{**m, "content": m["content"][:65535]}
                                     for m in body.get("messages", [])]}
    replace(penstock.Job, "message", lambda was: lambda job: was(penstock.Job(
        job.op, cut(job.body), job.id, job.fields)))


def gives_up_at(command):
    def do(was):
        def once(self, commands):
            if commands and commands[0][0] == command:
                self.patience = 0
                penstock._Backoff.next = give_up
            return was(self, commands)
        return once

    def give_up(self, why):
        raise penstock.RedisAway(str(why))
    replace(penstock.Client, "_do", do)


@fault("push-cut-off")
def pushes_once():
    gives_up_at("RPUSH")


@fault("push-arrived")
def pushes_again_under_another_id():
    def enqueue(was):
        def again(self, job):
            try:
                return was(self, job)
            except penstock.RedisAway:
                return was(self, penstock.Job(job.op, job.body, job.id + "-again", job.fields))
        return again
    replace(penstock.Client, "enqueue", enqueue)
    gives_up_at("RPUSH")


@fault("push-full")
def takes_full_for_an_end():
    def next(was):
        def refuse(self, why):
            if not isinstance(why, redis.ConnectionError):
                raise penstock.PenstockError(str(why))
            return was(self, why)
        return refuse
    replace(penstock._Backoff, "next", next)


@fault("push-full")
def takes_full_for_done():
    def do(was):
        def quietly(self, commands):
            try:
                return was(self, commands)
            except penstock.PenstockError:
                return [None]
        return quietly
    takes_full_for_an_end()
    replace(penstock.Client, "_do", do)


@fault("wait-cut-off")
def waits_on_one_connection():
    gives_up_at("XREAD")


@fault("bulk")
def enqueues_all_at_once():
    replace(penstock._Protocol, "_bulk", lambda was: lambda self, window: was(self, 1000))


@fault("bulk")
def enqueues_one_by_one():
    replace(penstock._Protocol, "_bulk", lambda was: lambda self, window: was(self, 1))


@fault("bulk")
def loses_a_result():
    replace(Plain, "bulk", lambda was: lambda self, wish: {
        "results": dict(list(was(self, wish)["results"].items())[1:])})


@fault("bulk-cut-off")
def bulk_on_one_connection():
    gives_up_at("XREAD")


@fault("stream")
def gives_all_at_the_end():
    replace(Plain, "stream", lambda was: lambda self, wish: {**was(self, wish), "pieces": 1})


@fault("stream")
def cuts_characters():
    def give(self, fresh, final=False):
        hidden = max(0, self.skip - len(self.bytes))
        self.bytes += fresh
        self.new = fresh[hidden:].decode(errors="replace")
        return self.new != ""
    Text._give = give


@fault("stream-overlap")
def appends_what_comes():
    Text.add = lambda self, offset, chunk: self._give(chunk)


@fault("stream-gap")
def closes_gaps():
    def add(self, offset, chunk):
        return self._give(chunk[max(0, len(self.bytes) - offset):])
    Text.add = add


@fault("stream-rest")
def forgets_the_rest():
    Text.end = lambda self, result: False


@fault("stream-offset")
def ignores_the_offset():
    replace(penstock.Client, "stream",
            lambda was: lambda self, job, timeout, offset=0: was(self, job, timeout, 0))


@fault("stream-long-ago")
def streams_from_events_alone():
    trusts_events_alone()


@fault("stream-differs")
def believes_the_stream():
    Text.end = lambda self, result: self._give((result.text or "").encode()[len(self.bytes):])


@fault("stream-cut-off")
def streams_on_one_connection():
    gives_up_at("XREAD")


@fault("stream-cut-off")
def starts_over():
    def do(was):
        def from_the_start(self, commands):
            try:
                return [self._redis.execute_command(*commands[0])] if commands else []
            except redis.ConnectionError:
                self.lost = True
                return was(self, commands)
        return from_the_start

    def news(was):
        def again(self, at, block_ms):
            got = yield from was(self, at, block_ms)
            if getattr(self, "lost", False):
                self.lost = False
                at.update({name: "0-0" for name in at if ":t:" in name})
            return got
        return again
    replace(penstock.Client, "_do", do)
    replace(penstock._Protocol, "_news", news)
    appends_what_comes()


@fault("stream-cancel")
def knows_only_done():
    penstock.ENDS = ("done", "failed", penstock.CONFLICT)


if __name__ == "__main__":
    if sys.argv[1] != "none":
        FAULTS[sys.argv[1]][0]()
    conformance.main()

"""A client of Penstock's queue: jobs in, results out, over plain Redis and msgpack.

    client = Client("redis://127.0.0.1:6379")
    job = client.enqueue(Job("chat", {"messages": [{"role": "user", "content": "Hello"}]}))
    print(client.wait(job).text)

AsyncClient is the same with await. A client may be used by one thread (one task) at a time. Lost
connections are made again for `patience` seconds, with the same messages: ids make that safe.
"""
from __future__ import annotations

import asyncio
import codecs
import itertools
import secrets
import time
from dataclasses import dataclass, field
from typing import (Any, AsyncIterable, AsyncIterator, Dict, Generator, Iterable, Iterator, List,
                    Mapping, Optional, Tuple, TypeVar, Union)

import msgpack
import redis
import redis.asyncio

T = TypeVar("T")
CONFLICT = "id_conflict"
ENDS = ("done", "failed", "cancelled", "expired", CONFLICT)
BLOCK_MS = 5000  # of one XREAD; well below the socket's timeout
ENTRIES_AT_ONCE = 1000
PUSH_AT_ONCE = 64


class PenstockError(Exception):
    """What went wrong on the client's side. A failed job is no exception but a Result."""


class RedisAway(PenstockError):
    """Redis could not be reached, or was full, for longer than the client's patience."""


@dataclass
class Job:
    """What is asked for. The same Job may be enqueued again: its id stays, so it runs once."""
    op: str  # chat, completion, tokens, map_reduce
    body: Union[Mapping[str, Any], str]  # an OpenAI request body, or its JSON text
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    fields: Mapping[str, Any] = field(default_factory=dict)  # class, deadline, custom_id, stream..
    since: Optional[str] = None  # last event before the push; set by enqueue

    def message(self) -> bytes:
        return _pack({**self.fields, "v": 1, "id": self.id, "op": self.op, "body": self.body})


@dataclass
class Result:
    """What became of a job. Unknown fields stay in `raw`."""
    id: str
    status: str  # ok, error, cancelled, expired
    text: Optional[str]
    tokens: List[int]
    finish_reason: Optional[str]
    custom_id: Optional[str]
    usage: Dict[str, int]
    error: Optional[Dict[str, Any]]  # code, message, retryable
    raw: Dict[str, Any]

    @property
    def ok(self) -> bool:
        return self.status == "ok"


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def _result(data: Optional[bytes]) -> Optional[Result]:
    if data is None:
        return None
    raw = msgpack.unpackb(data, raw=False, strict_map_key=False)
    return Result(raw["id"], raw["status"], raw.get("text"), raw.get("tokens") or [],
                  raw.get("finish_reason"), raw.get("custom_id"), raw.get("usage") or {},
                  raw.get("error"), raw)


def _failed(id: str, code: str, message: str) -> Result:
    error = {"code": code, "message": message, "retryable": False}
    return Result(id, "error", None, [], None, None, {}, error, {})


def _ended(id: str, event: str, data: Optional[bytes]) -> Result:
    """The result that belongs to an event of the job."""
    if event == CONFLICT:
        return _failed(id, CONFLICT, "the id belongs to another job")
    return _result(data) or _failed(id, "result_gone", "the job has ended; its result has expired")


def _named(job: Union[Job, str]) -> Tuple[str, Optional[str]]:
    return (job, None) if isinstance(job, str) else (job.id, job.since)


def _events(entries: Any, ids: Any) -> Dict[str, str]:
    """{job: its last event} of those that end a wait for one of `ids`."""
    found = {}
    for _, fields in entries:
        id, event = fields[b"id"].decode(), fields[b"event"].decode()
        if id in ids and event in ENDS:
            found[id] = event
    return found


def _order(entry: bytes) -> Tuple[int, ...]:
    return tuple(int(part) for part in entry.split(b"-"))


def _left(until: Optional[float]) -> int:
    """How long an XREAD may block, in ms (0 would be without end)."""
    if until is None:
        return BLOCK_MS
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("the job has not ended in time")
    return max(1, min(BLOCK_MS, int(left * 1000)))


class _Text:
    """Streamed chunks, placed by their offsets; `new` is what add and end found out behind the
    first `skip` bytes."""

    def __init__(self, skip: int = 0) -> None:
        self.bytes, self.new, self.skip = b"", "", skip
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, offset: int, chunk: bytes) -> bool:
        known = len(self.bytes) - offset
        return self._give(chunk[known:] if known >= 0 else b"")  # behind a gap: the result has it

    def end(self, result: Result) -> bool:
        whole = (result.text or "").encode()
        known = len(self.bytes)
        if whole[:known] != self.bytes[:len(whole)] or (result.ok and len(whole) < known):
            raise PenstockError("the streamed text is not the result's; only the result counts")
        return self._give(whole[known:], final=True)

    def _give(self, fresh: bytes, final: bool = False) -> bool:
        hidden = max(0, self.skip - len(self.bytes))
        self.bytes += fresh
        self.new = self.decoder.decode(fresh[hidden:], final)
        return self.new != ""


class _Backoff:
    """How long to wait before the next try; gives up after `patience` seconds."""

    def __init__(self, patience: float) -> None:
        self.until, self.delay = time.monotonic() + patience, 0.01

    def next(self, why: redis.RedisError) -> float:
        away = isinstance(why, (redis.ConnectionError, redis.TimeoutError))  # LOADING, too
        denied = isinstance(why, redis.AuthenticationError)
        full = "OOM" in str(why) or type(why).__name__ == "OutOfMemoryError"
        if denied or not (away or full):
            raise PenstockError("Redis refused: %s" % why) from why
        if time.monotonic() > self.until:
            raise RedisAway("Redis is %s: %s" % ("away" if away else "full", why)) from why
        self.delay = min(self.delay * 2, 1.0)
        return self.delay


class _Do(Tuple[Any, ...]):
    """Redis commands that a protocol step wants done; it is sent the list of replies."""


class _More(int):
    """As many new jobs as a protocol step has room for; it is sent a list of them."""


Steps = Generator[Any, Any, T]  # yields _Do, _More, and what the caller is to get


class _Protocol:
    """What is said to Redis, once for both clients; they only carry it out."""

    def __init__(self, queue: str, tenant: str, patience: float) -> None:
        self.patience = patience
        self._inbox = "ps:{%s}:in:%s" % (queue, tenant)
        self._log = "ps:{%s}:ev:%s" % (queue, tenant)
        self._results = "ps:{%s}:r:%s:" % (queue, tenant)
        self._chunks = "ps:{%s}:t:%s:" % (queue, tenant)

    def _last(self) -> Steps[str]:
        [got] = yield _Do([("XREVRANGE", self._log, "+", "-", "COUNT", 1)])
        return str(got[0][0].decode()) if got else "0-0"

    def _read(self, id: str) -> Steps[Optional[Result]]:
        [data] = yield _Do([("GET", self._results + id)])
        return _result(data)

    def _push(self, messages: List[bytes]) -> Steps[None]:
        # Whether a push that was cut off arrived is unknown: it is made again as it was.
        if messages:
            yield _Do([("RPUSH", self._inbox, *messages)])

    def _enqueue(self, job: Job) -> Steps[Job]:
        job.since = yield from self._last()
        yield from self._push([job.message()])
        return job

    def _cancel(self, job: Union[Job, str]) -> Steps[None]:
        yield from self._push([_pack({"v": 1, "id": _named(job)[0], "op": "cancel"})])

    def _news(self, at: Dict[str, str], block_ms: int) -> Steps[Tuple[Any, bool]]:
        """({stream: its new entries}, whether the log dropped some unseen); moves `at`."""
        [got] = yield _Do([("XREAD", "COUNT", ENTRIES_AT_ONCE, "BLOCK", block_ms,
                            "STREAMS", *at.keys(), *at.values())])
        found = {name.decode(): entries for name, entries in got or []}
        gap = False
        if self._log in found:
            [oldest] = yield _Do([("XRANGE", self._log, "-", "+", "COUNT", 1)])
            gap = not oldest or _order(oldest[0][0]) > _order(at[self._log].encode())
        for name, entries in found.items():
            at[name] = entries[-1][0].decode()
        return found, gap

    def _follow(self, job: Union[Job, str], timeout: Optional[float], text: Optional[_Text]
                ) -> Steps[Result]:
        id, since = _named(job)
        until = None if timeout is None else time.monotonic() + timeout
        result = None
        if since is None:
            since = yield from self._last()  # before the look, so that nothing falls between
            result = yield from self._read(id)
        at = {self._log: since}
        if text is not None:
            at[self._chunks + id] = "0-0"
        while result is None:
            found, gap = yield from self._news(at, _left(until))
            for _, chunk in found.get(self._chunks + id, []):
                if text is not None and text.add(int(chunk[b"offset"]), chunk[b"bytes"]):
                    yield text.new
            for event in _events(found.get(self._log, []), (id,)).values():
                [data] = yield _Do([("GET", self._results + id)])
                result = _ended(id, event, data)
            if result is None and gap:
                result = yield from self._read(id)
        if text is not None and text.end(result):
            yield text.new
        return result

    def _bulk(self, window: int) -> Steps[None]:
        open: Dict[str, Job] = {}
        at, more = {self._log: (yield from self._last())}, True
        while True:
            room = window - len(open)
            new = (yield _More(min(room, PUSH_AT_ONCE))) if more and room else []
            more = more and (len(new) > 0 or room == 0)
            for job in new:
                if job.id in open:
                    raise PenstockError("two jobs with the id " + job.id)
                open[job.id] = job
            yield from self._push([job.message() for job in new])
            if not open:
                return
            # The window is filled first; then there is nothing to do but wait.
            found, gap = yield from self._news(at, BLOCK_MS if not more or len(open) >= window
                                               else 1)
            events = _events(found.get(self._log, []), open)
            ids = list(open) if gap else list(events)
            for id, data in zip(ids, (yield _Do([("GET", self._results + id) for id in ids]))):
                if id in events or data is not None:
                    yield open.pop(id), _ended(id, events.get(id, "done"), data)


class Client(_Protocol):
    """Blocking. `url` as of redis-py: redis://[user:password@]host:port, unix://path."""

    def __init__(self, url: str = "redis://127.0.0.1:6379", queue: str = "default",
                 tenant: str = "default", patience: float = 60) -> None:
        super().__init__(queue, tenant, patience)
        self._redis: Any = redis.Redis.from_url(url, socket_timeout=30)

    def close(self) -> None:
        self._redis.close()

    def enqueue(self, job: Job) -> Job:
        return self._run(self._enqueue(job))

    def cancel(self, job: Union[Job, str]) -> None:
        """A job that has ended stays as it is; the others end with the status cancelled."""
        self._run(self._cancel(job))

    def result(self, job: Union[Job, str]) -> Optional[Result]:
        """None: there is none yet, or no more."""
        return self._run(self._read(_named(job)[0]))

    def wait(self, job: Union[Job, str], timeout: Optional[float] = None) -> Result:
        """The result, at the job's end. TimeoutError after `timeout` seconds."""
        return self._run(self._follow(job, timeout, None))

    def stream(self, job: Union[Job, str], timeout: Optional[float] = None, offset: int = 0
               ) -> Iterator[str]:
        """Pieces of the text as they come, and what is missing at the end. For jobs with the field
        `stream`; the text of others comes at once. `offset`: bytes that are here already."""
        return self._each(self._follow(job, timeout, _Text(offset)), iter(()))

    def bulk(self, jobs: Iterable[Job], window: int = 256) -> Iterator[Tuple[Job, Result]]:
        """Runs many jobs and yields them as they end. At most `window` are in the queue, and new
        ones are taken from `jobs` only as results are taken from here."""
        return self._each(self._bulk(window), iter(jobs))

    def _run(self, steps: Steps[T]) -> T:
        reply = None
        while True:
            try:
                reply = self._do(steps.send(reply))
            except StopIteration as end:
                value: T = end.value
                return value

    def _each(self, steps: Steps[Any], jobs: Iterator[Job]) -> Iterator[Any]:
        reply: Any = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration:
                return
            reply = None
            if isinstance(step, _Do):
                reply = self._do(step)
            elif isinstance(step, _More):
                reply = list(itertools.islice(jobs, step))
            else:
                yield step

    def _do(self, commands: _Do) -> List[Any]:
        backoff = _Backoff(self.patience)
        while commands:
            try:
                if len(commands) == 1:
                    return [self._redis.execute_command(*commands[0])]
                with self._redis.pipeline(transaction=False) as p:
                    for command in commands:
                        p.execute_command(*command)
                    replies: List[Any] = p.execute()
                    return replies
            except redis.RedisError as e:
                time.sleep(backoff.next(e))
        return []


class AsyncClient(_Protocol):
    """The same for asyncio."""

    def __init__(self, url: str = "redis://127.0.0.1:6379", queue: str = "default",
                 tenant: str = "default", patience: float = 60) -> None:
        super().__init__(queue, tenant, patience)
        self._redis: Any = redis.asyncio.Redis.from_url(url, socket_timeout=30)

    async def close(self) -> None:
        await getattr(self._redis, "aclose", self._redis.close)()

    async def enqueue(self, job: Job) -> Job:
        return await self._run(self._enqueue(job))

    async def cancel(self, job: Union[Job, str]) -> None:
        await self._run(self._cancel(job))

    async def result(self, job: Union[Job, str]) -> Optional[Result]:
        return await self._run(self._read(_named(job)[0]))

    async def wait(self, job: Union[Job, str], timeout: Optional[float] = None) -> Result:
        return await self._run(self._follow(job, timeout, None))

    def stream(self, job: Union[Job, str], timeout: Optional[float] = None, offset: int = 0
               ) -> AsyncIterator[str]:
        return self._each(self._follow(job, timeout, _Text(offset)), _none())

    def bulk(self, jobs: Union[Iterable[Job], AsyncIterable[Job]], window: int = 256
             ) -> AsyncIterator[Tuple[Job, Result]]:
        source = jobs if isinstance(jobs, AsyncIterable) else _async(jobs)
        return self._each(self._bulk(window), source.__aiter__())

    async def _run(self, steps: Steps[T]) -> T:
        reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                value: T = end.value
                return value
            reply = await self._do(step)

    async def _each(self, steps: Steps[Any], jobs: AsyncIterator[Job]) -> AsyncIterator[Any]:
        reply: Any = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration:
                return
            reply = None
            if isinstance(step, _Do):
                reply = await self._do(step)
            elif isinstance(step, _More):
                reply = await _take(jobs, step)
            else:
                yield step

    async def _do(self, commands: _Do) -> List[Any]:
        backoff = _Backoff(self.patience)
        while commands:
            try:
                if len(commands) == 1:
                    return [await self._redis.execute_command(*commands[0])]
                async with self._redis.pipeline(transaction=False) as p:
                    for command in commands:
                        p.execute_command(*command)
                    replies: List[Any] = await p.execute()
                    return replies
            except redis.RedisError as e:
                await asyncio.sleep(backoff.next(e))
        return []


async def _async(jobs: Iterable[Job]) -> AsyncIterator[Job]:
    for job in jobs:
        yield job


async def _none() -> AsyncIterator[Job]:
    nothing: Tuple[Job, ...] = ()
    for job in nothing:
        yield job


async def _take(jobs: AsyncIterator[Job], n: int) -> List[Job]:
    got: List[Job] = []
    while len(got) < n:
        try:
            got.append(await jobs.__anext__())
        except StopAsyncIteration:
            break
    return got

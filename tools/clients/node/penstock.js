// A client of Penstock's queue: jobs in, results out, over ioredis and @msgpack/msgpack.
//
//     const client = new Client('redis://127.0.0.1:6379');
//     const job = await client.enqueue({op: 'completion', body: {prompt: 'Hello'}});
//     console.log((await client.wait(job)).text);
//
// Reading blocks a connection, so there are two. Lost ones are made again for `patience` ms, and
// what was cut off is said again with the same id, which runs once.
import {randomBytes} from 'node:crypto';
import {setTimeout as sleep} from 'node:timers/promises';
import {decode, encode} from '@msgpack/msgpack';
import Redis from 'ioredis';

const ENDS = new Set(['done', 'failed', 'cancelled', 'expired', 'id_conflict']);
const BLOCK_MS = 5000; // of one XREAD
const ENTRIES_AT_ONCE = 1000;
const PUSH_AT_ONCE = 64;

/** What went wrong on the client's side. A failed job is no error but a result. */
export class PenstockError extends Error {}
/** Redis could not be reached, or was full, for longer than the client's patience. */
export class RedisAway extends PenstockError {}
/** The job has not ended in time. */
export class TimedOut extends PenstockError {}

const failed = (id, code, message) =>
  ({v: 1, id, status: 'error', tokens: [], error: {code, message, retryable: false}});

const message = ({since, ...job}) => {
  const bytes = encode({...job, v: 1}, {ignoreUndefined: true});
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
};

const idOf = (job) => (typeof job === 'string' ? job : job.id);

/** The result that belongs to an event of the job. */
const endedBy = (id, event, bytes) => {
  if (event === 'id_conflict') return failed(id, event, 'the id belongs to another job');
  if (!bytes) return failed(id, 'result_gone', 'the job has ended; its result has expired');
  return decode(bytes);
};

/** Is the stream entry a later than b? */
const later = (a, b) => {
  const [ms, seq] = [a, b].map((id) => id.split('-').map(BigInt)).reduce(
    (x, y) => [x[0] - y[0], x[1] - y[1]]);
  return ms !== 0n ? ms > 0n : seq > 0n;
};

const fieldsOf = (flat) => {
  const fields = {};
  for (let i = 0; i < flat.length; i += 2) fields[flat[i].toString()] = flat[i + 1];
  return fields;
};

/** Streamed chunks, placed by their offsets; add and end return what is new behind the first
 * `skip` bytes. */
class Text {
  bytes = Buffer.alloc(0);
  decoder = new TextDecoder();

  constructor(skip) {
    this.skip = skip;
  }

  add(offset, chunk) {
    const known = this.bytes.length - offset;
    if (known < 0 || known >= chunk.length) return ''; // behind a gap: the result has it
    return this.#give(chunk.subarray(known), true);
  }

  end(result) {
    const whole = Buffer.from(result.text ?? '');
    const n = Math.min(whole.length, this.bytes.length);
    const short = result.status === 'ok' && n < this.bytes.length;
    if (short || !whole.subarray(0, n).equals(this.bytes.subarray(0, n))) {
      throw new PenstockError("the streamed text is not the result's; only the result counts");
    }
    return this.#give(whole.subarray(n), false);
  }

  #give(fresh, stream) {
    const hidden = Math.max(0, this.skip - this.bytes.length);
    this.bytes = Buffer.concat([this.bytes, fresh]);
    return this.decoder.decode(fresh.subarray(hidden), {stream});
  }
}

export class Client {
  #inbox; #log; #results; #chunks; #patience; #talk; #listen;

  /** url: redis://[user:password@]host:port, or the path of a unix socket. */
  constructor(url = 'redis://127.0.0.1:6379',
    {queue = 'default', tenant = 'default', patience = 60000} = {}) {
    this.#inbox = `ps:{${queue}}:in:${tenant}`;
    this.#log = `ps:{${queue}}:ev:${tenant}`;
    this.#results = `ps:{${queue}}:r:${tenant}:`;
    this.#chunks = `ps:{${queue}}:t:${tenant}:`;
    this.#patience = patience;
    // What is tried again is decided here, not in ioredis: nothing is queued while away.
    const settings = {lazyConnect: true, maxRetriesPerRequest: 0, enableReadyCheck: false,
      autoResendUnfulfilledCommands: false, retryStrategy: () => 50};
    [this.#talk, this.#listen] = [1, 2].map(() => new Redis(url.replace(/^unix:\/\//, ''), settings));
    for (const redis of [this.#talk, this.#listen]) redis.on('error', () => {}); // calls tell
  }

  close() {
    this.#talk.disconnect();
    this.#listen.disconnect();
  }

  /** Enqueues {op, body, id?, custom_id?, class?, ...} and returns the job: with the id, which is
   * made if absent, and `since`, the last event before it. The same job again runs once. */
  async enqueue(job) {
    const whole = {...job, id: job.id ?? randomBytes(16).toString('hex')};
    whole.since = await this.#lastEvent();
    await this.#push([message(whole)]);
    return whole;
  }

  /** A job that has ended stays as it is; the others end with the status cancelled. */
  async cancel(job) {
    await this.#push([message({id: idOf(job), op: 'cancel'})]);
  }

  /** undefined: there is none yet, or no more. */
  async result(job) {
    const bytes = await this.#get(idOf(job));
    return bytes ? decode(bytes) : undefined;
  }

  /** The result at the job's end. TimedOut after `timeout` ms. */
  async wait(job, {timeout} = {}) {
    const steps = this.#follow(job, timeout);
    for (;;) {
      const {done, value} = await steps.next();
      if (done) return value;
    }
  }

  /** Pieces of the text as they come, and what is missing at the end. For jobs with `stream`; the
   * text of others comes at once. `offset`: bytes that are here already. */
  async* stream(job, {timeout, offset = 0} = {}) {
    const text = new Text(offset);
    const result = yield* this.#follow(job, timeout, text);
    const rest = text.end(result);
    if (rest !== '') yield rest;
  }

  /** Runs many jobs, of an iterable or async iterable, and yields [job, result] as they end. At most
   * `window` are in the queue, and new ones are taken only as results are taken from here. */
  async* bulk(jobs, {window = 256} = {}) {
    const source = jobs[Symbol.asyncIterator]?.() ?? jobs[Symbol.iterator]();
    const open = new Map();
    const at = {[this.#log]: await this.#lastEvent()};
    let more = true;
    while (more || open.size > 0) {
      const fresh = [];
      while (more && open.size < window && fresh.length < PUSH_AT_ONCE) {
        const {done, value} = await source.next();
        more = !done;
        if (done) break;
        const job = {...value, id: value.id ?? randomBytes(16).toString('hex')};
        if (open.has(job.id)) throw new PenstockError(`two jobs with the id ${job.id}`);
        open.set(job.id, job);
        fresh.push(message(job));
      }
      if (fresh.length > 0) await this.#push(fresh);
      if (open.size === 0) return;
      // The window is filled first; then there is nothing to do but wait.
      const {entries, gap} = await this.#news(at, more && open.size < window ? 1 : BLOCK_MS);
      const events = this.#ends(entries[this.#log], open);
      const ids = gap ? [...open.keys()] : [...events.keys()];
      const found = await Promise.all(ids.map((id) => this.#get(id)));
      for (const [i, id] of ids.entries()) {
        if (!events.has(id) && !found[i]) continue;
        const job = open.get(id);
        open.delete(id);
        yield [job, endedBy(id, events.get(id) ?? 'done', found[i])];
      }
    }
  }

  async #lastEvent() {
    const [last] = await this.#again(this.#talk, 'xrevrange', this.#log, '+', '-', 'COUNT', 1);
    return last ? last[0].toString() : '0-0';
  }

  #get(id) {
    return this.#again(this.#talk, 'get', this.#results + id);
  }

  // Whether a push that was cut off arrived is unknown: it is made again as it was.
  #push(messages) {
    return this.#again(this.#talk, 'rpush', this.#inbox, ...messages);
  }

  async #again(redis, command, ...args) {
    const until = Date.now() + this.#patience;
    for (let delay = 20; ; delay = Math.min(delay * 2, 1000)) {
      try {
        return await redis.callBuffer(command, ...args);
      } catch (e) {
        const reply = e.name === 'ReplyError';
        if (reply && !/^(OOM|LOADING)/.test(e.message)) {
          throw new PenstockError(`Redis refused: ${e.message}`, {cause: e});
        }
        if (Date.now() > until) {
          throw new RedisAway(`Redis is ${reply ? 'full' : 'away'}: ${e.message}`, {cause: e});
        }
        await sleep(delay);
      }
    }
  }

  // New entries by stream, and whether the log has dropped some unseen; moves `at`.
  async #news(at, block) {
    const since = at[this.#log];
    const got = await this.#again(this.#listen, 'xread', 'COUNT', ENTRIES_AT_ONCE, 'BLOCK', block,
      'STREAMS', ...Object.keys(at), ...Object.values(at));
    const entries = {};
    for (const [key, list] of got ?? []) {
      entries[key.toString()] = list.map(([, flat]) => fieldsOf(flat));
      at[key.toString()] = list.at(-1)[0].toString();
    }
    if (!entries[this.#log]) return {entries, gap: false};
    const [oldest] = await this.#again(this.#talk, 'xrange', this.#log, '-', '+', 'COUNT', 1);
    return {entries, gap: !oldest || later(oldest[0].toString(), since)};
  }

  // {id: event} of what ends a wait for one of the ids.
  #ends(entries, ids) {
    const found = new Map();
    for (const fields of entries ?? []) {
      const [id, event] = [fields.id.toString(), fields.event.toString()];
      if (ids.has(id) && ENDS.has(event)) found.set(id, event);
    }
    return found;
  }

  async* #follow(job, timeout, text) {
    const [id, ids] = [idOf(job), new Set([idOf(job)])];
    const until = timeout === undefined ? Infinity : Date.now() + timeout;
    let since = job.since;
    if (!since) {
      since = await this.#lastEvent(); // before the look, so that nothing falls between
      const result = await this.result(id);
      if (result) return result;
    }
    const at = {[this.#log]: since, ...(text && {[this.#chunks + id]: '0-0'})};
    for (;;) {
      const left = Math.min(BLOCK_MS, until - Date.now());
      if (left <= 0) throw new TimedOut(`${id} has not ended in time`);
      const {entries, gap} = await this.#news(at, Math.ceil(left));
      for (const chunk of entries[this.#chunks + id] ?? []) {
        const piece = text.add(Number(chunk.offset), chunk.bytes);
        if (piece !== '') yield piece;
      }
      const event = this.#ends(entries[this.#log], ids).get(id);
      if (event) return endedBy(id, event, await this.#get(id));
      const result = gap ? await this.result(id) : undefined;
      if (result) return result;
    }
  }
}

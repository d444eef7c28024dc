#!/usr/bin/env node
// What `penstock conformance producer` talks to: wishes as JSON lines in, replies out.
import {createInterface} from 'node:readline';
import {Client, TimedOut} from './penstock.js';

const {PENSTOCK_REDIS, PENSTOCK_QUEUE: queue, PENSTOCK_TENANT: tenant} = process.env;
const client = new Client(PENSTOCK_REDIS, {queue, tenant});
const jobs = new Map();

const jobOf = ({id}) => jobs.get(id) ?? id;

const shown = (id, r) => (!r ? {id, status: null}
  : {id, status: r.status, text: r.text, finish_reason: r.finish_reason, custom_id: r.custom_id,
    error: r.error?.code});

function* bulkJobs({n, prefix}) {
  for (let i = 0; i < n; i++) {
    const id = `${prefix}-${i}`;
    yield {id, op: 'completion', body: {prompt: id, max_tokens: 16}};
  }
}

const wishes = {
  async enqueue({op, body, id, fields}) {
    const job = await client.enqueue({...fields, op, body, id});
    jobs.set(job.id, job);
    return {id: job.id};
  },
  async wait(wish) {
    return shown(wish.id, await client.wait(jobOf(wish), {timeout: wish.timeout * 1000}));
  },
  async result({id}) {
    return shown(id, await client.result(id));
  },
  async stream(wish) {
    const pieces = [];
    const settings = {timeout: wish.timeout * 1000, offset: wish.offset};
    for await (const piece of client.stream(jobOf(wish), settings)) pieces.push(piece);
    return {id: wish.id, text: pieces.join(''), pieces: pieces.length};
  },
  async cancel({id}) {
    await client.cancel(id);
    return {id};
  },
  async bulk(wish) {
    const results = {};
    for await (const [{id}, r] of client.bulk(bulkJobs(wish), {window: wish.window})) {
      results[id] = r.status === 'ok' ? r.text : r.error.code;
    }
    return {results};
  },
};

for await (const line of createInterface({input: process.stdin})) {
  const wish = JSON.parse(line);
  let reply = {unsupported: true};
  try {
    if (wishes[wish.do]) reply = await wishes[wish.do](wish);
  } catch (e) {
    reply = e instanceof TimedOut ? {timeout: true} : {failure: `${e.name}: ${e.message}`};
  }
  console.log(JSON.stringify(reply));
}
client.close();

#!/usr/bin/env node
// One job with its tokens as they come, then many with a bounded window. Queue by environment:
// PENSTOCK_REDIS, PENSTOCK_QUEUE, PENSTOCK_TENANT.
import {Client} from './penstock.js';

const {PENSTOCK_REDIS, PENSTOCK_QUEUE: queue, PENSTOCK_TENANT: tenant} = process.env;
const client = new Client(PENSTOCK_REDIS, {queue, tenant});

const chat = (content) =>
  ({op: 'chat', body: {messages: [{role: 'user', content}], max_tokens: 96, temperature: 0}});

const first = chat('Extract JSON: reviews - WARN - sent 57862 mails, 2ms');
const job = await client.enqueue({...first, stream: true});
for await (const piece of client.stream(job, {timeout: 300000})) process.stdout.write(piece);
console.log();

function* jobs() {
  for (let i = 0; i < 20; i++) yield chat(`Extract JSON: WARN - billing - took ${i}ms`);
}
for await (const [{id}, result] of client.bulk(jobs(), {window: 8})) {
  console.log(id, result.status === 'ok' ? result.text : result.error.message);
  if (result.status !== 'ok') process.exitCode = 1;
}
client.close();

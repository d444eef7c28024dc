#!/usr/bin/python3
"""One job with its tokens as they come, then many with a bounded window. Queue by environment:
PENSTOCK_REDIS, PENSTOCK_QUEUE, PENSTOCK_TENANT."""
import asyncio
import os
import sys

from penstock import AsyncClient, Client, Job

QUEUE = {"url": os.environ.get("PENSTOCK_REDIS", "redis://127.0.0.1:6379"),
         "queue": os.environ.get("PENSTOCK_QUEUE", "default"),
         "tenant": os.environ.get("PENSTOCK_TENANT", "default")}


def chat(text, **fields):
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 96, "temperature": 0}
    return Job("chat", body, fields=fields)


def plain():
    client = Client(**QUEUE)
    job = client.enqueue(chat("Extract JSON: reviews - WARN - sent 57862 mails, 2ms", stream=True))
    for piece in client.stream(job, timeout=300):
        print(piece, end="", flush=True)
    print()
    failed = 0
    jobs = (chat("Extract JSON: WARN - billing - took %dms" % i) for i in range(20))
    for job, result in client.bulk(jobs, 8):
        failed += not result.ok
        print(job.id, result.text if result.ok else result.error["message"])
    return failed


async def asynchronous():
    client = AsyncClient(**QUEUE)
    job = await client.enqueue(chat("Extract JSON: reviews - WARN - sent 57862 mails, 2ms"))
    print((await client.wait(job, timeout=300)).text)
    await client.close()


if __name__ == "__main__":
    asyncio.run(asynchronous())
    sys.exit(1 if plain() else 0)

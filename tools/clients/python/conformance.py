#!/usr/bin/python3
"""What `penstock conformance producer` talks to: wishes as JSON lines in, replies out.
With --asyncio by the asynchronous client."""
import asyncio
import json
import os
import sys

from penstock import AsyncClient, Client, Job


def queue():
    return [os.environ[name] for name in ("PENSTOCK_REDIS", "PENSTOCK_QUEUE", "PENSTOCK_TENANT")]


def wished(wish):
    more = {"id": wish["id"]} if "id" in wish else {}
    return Job(wish["op"], wish["body"], fields=wish.get("fields", {}), **more)


def bulk_jobs(wish):
    ids = ("%s-%d" % (wish["prefix"], i) for i in range(wish["n"]))
    return (Job("completion", {"prompt": id, "max_tokens": 16}, id=id) for id in ids)


def shown(id, result):
    if result is None:
        return {"id": id, "status": None}
    return {"id": id, "status": result.status, "text": result.text,
            "finish_reason": result.finish_reason, "custom_id": result.custom_id,
            "error": result.error and result.error["code"]}


def brief(result):
    return result.text if result.ok else result.error["code"]


class Plain:
    def __init__(self):
        self.client, self.jobs = Client(*queue()), {}

    def job(self, wish):
        return self.jobs.get(wish["id"], wish["id"])

    def enqueue(self, wish):
        job = self.client.enqueue(wished(wish))
        self.jobs[job.id] = job
        return {"id": job.id}

    def wait(self, wish):
        return shown(wish["id"], self.client.wait(self.job(wish), wish["timeout"]))

    def result(self, wish):
        return shown(wish["id"], self.client.result(wish["id"]))

    def stream(self, wish):
        pieces = list(self.client.stream(self.job(wish), wish["timeout"], wish.get("offset", 0)))
        return {"id": wish["id"], "text": "".join(pieces), "pieces": len(pieces)}

    def cancel(self, wish):
        self.client.cancel(wish["id"])
        return {"id": wish["id"]}

    def bulk(self, wish):
        ended = self.client.bulk(bulk_jobs(wish), wish["window"])
        return {"results": {job.id: brief(result) for job, result in ended}}


class Asynchronous:
    def __init__(self):
        self.client, self.jobs = AsyncClient(*queue()), {}
        self.loop = asyncio.new_event_loop()

    def job(self, wish):
        return self.jobs.get(wish["id"], wish["id"])

    def enqueue(self, wish):
        job = self.loop.run_until_complete(self.client.enqueue(wished(wish)))
        self.jobs[job.id] = job
        return {"id": job.id}

    def wait(self, wish):
        waiting = self.client.wait(self.job(wish), wish["timeout"])
        return shown(wish["id"], self.loop.run_until_complete(waiting))

    def result(self, wish):
        return shown(wish["id"], self.loop.run_until_complete(self.client.result(wish["id"])))

    def stream(self, wish):
        async def read():
            pieces = self.client.stream(self.job(wish), wish["timeout"], wish.get("offset", 0))
            return [piece async for piece in pieces]

        pieces = self.loop.run_until_complete(read())
        return {"id": wish["id"], "text": "".join(pieces), "pieces": len(pieces)}

    def cancel(self, wish):
        self.loop.run_until_complete(self.client.cancel(wish["id"]))
        return {"id": wish["id"]}

    def bulk(self, wish):
        async def run():
            ended = self.client.bulk(bulk_jobs(wish), wish["window"])
            return {job.id: brief(result) async for job, result in ended}

        return {"results": self.loop.run_until_complete(run())}


def main():
    side = Asynchronous() if "--asyncio" in sys.argv else Plain()
    for line in sys.stdin:
        wish = json.loads(line)
        do = getattr(side, wish["do"], None)
        try:
            reply = do(wish) if do else {"unsupported": True}
        except TimeoutError:
            reply = {"timeout": True}
        except Exception as e:
            reply = {"failure": "%s: %s" % (type(e).__name__, e)}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()

"""A pool of workers on one collection: a group shares its shards out, and one worker dies.

Run it by itself: `wal run -- python examples/worker_pool.py`. Each worker commits after it has
done its jobs, not before; so the jobs that the dead one had under way are done again by another
(at least once), and none is left out.
"""

from __future__ import annotations

import subprocess
import sys
import time

import wal_client

JOBS = 400
WORKERS = 3
COMMIT_EVERY = 10


def work() -> None:
    """Do jobs until the group has committed all that there were at the start."""
    with wal_client.connect() as client, client.member("pool", "jobs") as member:
        for batch in member:
            for offset, job in enumerate(batch.bodies(), batch.first):
                time.sleep(0.005)  # The work.
                print(job.decode(), flush=True)
                if (offset + 1) % COMMIT_EVERY == 0:
                    member.commit({batch.shard: offset + 1})
            member.commit({batch.shard: batch.end})


def main() -> None:
    with wal_client.connect() as client:
        client.call("create", name="jobs", shards=4)
        with client.producer("jobs") as producer:
            for number in range(JOBS):
                producer.append(b"job-%d" % number, key=b"%d" % number)
    command = [sys.executable, __file__, "worker"]
    pool = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(WORKERS)]
    victim = pool[0]
    assert victim.stdout is not None
    done = [victim.stdout.readline() for _ in range(25)]
    victim.kill()
    for worker in pool:
        out, _ = worker.communicate()
        done += out.splitlines(keepends=True)
    jobs = [line.strip() for line in done if line.endswith("\n")]
    again = len(jobs) - len(set(jobs))
    print(f"{WORKERS} workers, one killed: {len(set(jobs))} of {JOBS} jobs done")
    print(f"done twice: {again}", file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        work()
    else:
        main()

"""A producer and a consumer, blocking and asyncio. Needs a daemon: ``wal up`` starts one."""

from __future__ import annotations

import asyncio

import wal_client


def blocking() -> None:
    """Append with keys, then read from the first offset that was written."""
    with wal_client.connect() as client:
        with client.producer("orders") as producer:
            producer.append(b"2 apples", key=b"alice")
            producer.append(b"1 pear", key=b"bob", headers=((b"currency", b"EUR"),))
            receipt = producer.flush()  # Durable when it returns.
        print(f"appended {receipt.count}, durable: {receipt.durable}")
        first = wal_client.from_offset(receipt.parts[0].first)
        for batch in client.tail("orders", first):
            for offset, row in enumerate(batch.records(), batch.first):
                key = (row.key or b"").decode()
                print(f"  +{offset - receipt.parts[0].first} {key}: {row.body.decode()}")


async def concurrent() -> None:
    """Twenty appends at once share group commits; a reader follows them as they come."""
    async with await wal_client.connect_async() as client:
        producer = await client.producer("ticks")
        described = await client.call("describe", name="ticks")
        start = wal_client.from_offset(described["shards"][0]["next"])

        async def follow(wanted: int) -> int:
            seen = 0
            async for batch in client.tail("ticks", start, wal_client.FOLLOW):
                seen += batch.count
                if seen >= wanted:
                    break
            return seen

        reader = asyncio.create_task(follow(20))
        acks = await asyncio.gather(*(producer.append([b"tick %d" % n]) for n in range(20)))
        print(f"appended {len(acks)}, followed {await reader}")


if __name__ == "__main__":
    blocking()
    asyncio.run(concurrent())

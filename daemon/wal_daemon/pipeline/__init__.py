"""What an append passes on its way to the log, in this order: redo, lock, txn, time tick, shard.

Each interceptor is a plain object without I/O; ``sequencer`` is their order.
"""

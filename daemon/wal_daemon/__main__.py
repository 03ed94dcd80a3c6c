"""The program ``wald``: a node in the foreground, for systemd, containers and `wal up`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import sys

import uvloop

from wal_core import failpoints
from wal_core.clock import SystemClock
from wal_core.errors import EXIT_BUG, EXIT_OK, WalError
from wal_core.settings import resolve
from wal_core.version import VERSION
from wal_daemon import logs
from wal_daemon.node import Node


def entry() -> int:
    """Exit status 0 after a stop that was asked for, else the error's own."""
    arguments = _parser().parse_args()
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as comm:
        comm.write("wald")
    try:
        for setting in arguments.failpoint:
            failpoints.arm(setting)
        flags = {name: getattr(arguments, name) for name in ("dir", "node", "socket", "log_level")}
        settings = resolve(flags, os.environ, arguments.config)
        logs.set_up(settings["log_level"])
        _tame_collector()
        node = Node(settings, SystemClock(), takeover=arguments.takeover)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            failure = runner.run(node.run())
        if failure is not None:
            raise failure
    except WalError as error:
        return _report(error)
    except Exception:
        logging.getLogger("wald").exception("bug")
        return EXIT_BUG
    return EXIT_OK


def _tame_collector() -> None:
    """Messages hold no cycles, and thousands of them wait in the write-ahead buffer: the default
    thresholds would walk them again and again (5 % of the daemon's time, docs/performance.md)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _report(error: WalError) -> int:
    print(f"wald: {error.message} [{error.code}]", file=sys.stderr)
    if error.hint:
        print(f"  try: {error.hint}", file=sys.stderr)
    return error.exit_status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("wald", description="The walstream daemon, in the foreground.")
    parser.add_argument("--dir", help="data directory")
    parser.add_argument("--node", help="name of this daemon in its data directory")
    parser.add_argument("--socket", help="path of the Unix socket")
    parser.add_argument("--config", help="configuration file (TOML)")
    parser.add_argument("--log-level", dest="log_level", help="debug, info, warning or error")
    parser.add_argument(
        "--takeover",
        action="store_true",
        help="fence an owner that hangs, and take its PChannels over",
    )
    parser.add_argument("--failpoint", action="append", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"wald {VERSION}")
    return parser


if __name__ == "__main__":
    sys.exit(entry())

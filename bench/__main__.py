"""``make bench``: the table of docs/performance.md, measured here and now.

python -m bench [--quick] [--only pipe,connections,…] [--dir FOLDER] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from bench import exactly_once, floor, redis_peer, rows
from bench.results import Row, print_row, save

GROUPS = rows.GROUPS | exactly_once.GROUPS


def main() -> int:
    """0 when every row holds, 1 when one falls short."""
    parser = argparse.ArgumentParser("bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small round: does it run?")
    parser.add_argument("--only", help="groups: " + ",".join(GROUPS))
    parser.add_argument("--dir", type=Path, default=Path("build"), help="on the disk to measure")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"))
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(GROUPS)
    arguments.dir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=arguments.dir)).resolve()
    bench = rows.Bench(folder, quick=arguments.quick)
    found: list[Row] = []
    try:
        if not arguments.quick:
            floor.touch(folder, 4 << 30)
        for name in names:
            if name in rows.NEEDS_REDIS and not redis_peer.is_there():
                print(f"SKIP  {name}: redis-server and redis-benchmark are not installed")
                continue
            for row in GROUPS[name](bench):
                print_row(row)
                found.append(row)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    machine = {
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    save(found, arguments.json, machine)
    return 0 if all(row.holds for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())

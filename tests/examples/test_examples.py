"""The examples run, and print what they promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAM = Path(sys.executable).with_name("wal")


def _run(tmp_path: Path, *command: str | Path) -> str:
    """stdout of a command that ends well, in a home of its own."""
    (tmp_path / "tmp").mkdir(exist_ok=True)
    environment = {
        "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path / "tmp"),
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


def test_ship_and_crash(tmp_path: Path) -> None:
    out = _run(tmp_path, sys.executable, EXAMPLES / "ship_and_crash.py")
    assert "identical" in out
    assert "held" in out
    assert "\x1b" not in out
    assert not list((tmp_path / "tmp").iterdir())


def test_ci_step(tmp_path: Path) -> None:
    assert _run(tmp_path, PROGRAM, "run", "--", EXAMPLES / "ci_step.sh") == "passed: 3\n"


def test_log_shipping(tmp_path: Path) -> None:
    out = _run(tmp_path, PROGRAM, "run", "--", EXAMPLES / "log_shipping.sh", "3")
    assert out == "".join(f"request {number} answered\n" for number in (1, 2, 3))


def test_producer_consumer(tmp_path: Path) -> None:
    out = _run(tmp_path, PROGRAM, "run", "--", sys.executable, EXAMPLES / "producer_consumer.py")
    assert out.splitlines() == [
        "appended 2, durable: True",
        "  +0 alice: 2 apples",
        "  +1 bob: 1 pear",
        "appended 20, followed 20",
    ]


def test_ci_transaction(tmp_path: Path) -> None:
    out = _run(tmp_path, PROGRAM, "run", "--", EXAMPLES / "ci_transaction.sh")
    assert "after the failed run: 0 results" in out
    assert "after the good run: 2 results, app-1.1.tar.gz" in out


def test_exactly_once(tmp_path: Path) -> None:
    out = _run(tmp_path, PROGRAM, "run", "--", sys.executable, EXAMPLES / "exactly_once.py")
    assert out.splitlines() == [
        "the first worker wrote 6 batches and died",
        "the second one wrote 4",
        "a third one wrote 0",
        "100 rows, in order, each once: True",
    ]


def test_worker_pool(tmp_path: Path) -> None:
    out = _run(tmp_path, PROGRAM, "run", "--", sys.executable, EXAMPLES / "worker_pool.py")
    assert out == "3 workers, one killed: 400 of 400 jobs done\n"


def test_the_python_of_the_readme(tmp_path: Path) -> None:
    readme = (EXAMPLES.parent / "README.md").read_text()
    code = readme.partition("```python\n")[2].partition("```")[0]
    out = _run(tmp_path, PROGRAM, "run", "--", sys.executable, "-c", code)
    assert out == "None b'3 pears'\nNone b'1 plum'\n"

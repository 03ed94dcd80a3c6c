"""The tour of the README does what it says, on a terminal and in an empty home."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.examples.readme import blocks, run_session, shape
from wal_core import errors

README = Path(__file__).parents[2] / "README.md"
_PATH = re.compile(
    r"`((?:core|client|storage|daemon|wal_cli|tests|examples|bench|docs)/[\w./-]+\.(?:py|md|sh))`"
)


def test_the_tour(tmp_path: Path) -> None:
    tour = [line for block in blocks(README.read_text()) for line in block]
    assert len(tour) > 20
    outputs = run_session([command for command, _ in tour], tmp_path)
    assert len(outputs) == len(tour), "the session ended early"
    unchecked = []
    for (command, expected), got in zip(tour, outputs, strict=True):
        if "| jq" in command and not shutil.which("jq"):
            unchecked.append(command)
        else:
            assert shape(got) == shape(expected), f"$ {command}"
    if unchecked:
        pytest.skip(f"jq is not here; not checked: {unchecked}")


def test_every_exit_status_is_in_the_table() -> None:
    table = README.read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| ")][1:]
    listed = {int(status) for cell in cells for status in cell.split(",")}
    values = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert listed == values


def _pages() -> list[Path]:
    root = README.parent
    return [README, root / "CHANGELOG.md", *root.glob("docs/**/*.md")]


@pytest.mark.parametrize("page", _pages(), ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = {page.parent / target for target in re.findall(r"\]\(([^):#]+)\)", text)}
    paths = {README.parent / path for path in _PATH.findall(text)}
    missing = [str(target) for target in links | paths if not target.exists()]
    assert not missing

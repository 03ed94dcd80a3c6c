"""`wal config show`: every setting, and where it came from."""

from __future__ import annotations

from typing import Annotated

import typer

from wal_cli.context import Context
from wal_cli.options import Command, Group, with_context
from wal_cli.render import print_json, print_table
from wal_core.errors import EXIT_OK

app = typer.Typer(cls=Group, rich_markup_mode=None)


@app.callback()
def config() -> None:
    """Show the settings and where they come from."""


@app.command(cls=Command)
@with_context()
def show(
    context: Context,
    origin: Annotated[
        bool, typer.Option("--origin", help="Also say where each value came from.")
    ] = False,
) -> int:
    """Print all settings as this command line, environment and files give them."""
    values = context.settings.values
    if context.json:
        print_json(
            {
                name: {"value": one.value, "origin": one.origin} if origin else one.value
                for name, one in values.items()
            }
        )
        return EXIT_OK
    rows = [
        [name, _shown(one.value), *([one.origin] if origin else [])] for name, one in values.items()
    ]
    print_table(context, ["SETTING", "VALUE", *(["ORIGIN"] if origin else [])], rows)
    return EXIT_OK


def _shown(value: object) -> str:
    """As it would stand in a configuration file; ``-`` for not set."""
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)

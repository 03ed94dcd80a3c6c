"""`wal explain CODE` and `wal completion SHELL`: help that needs no daemon."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer

from wal_cli.context import Context
from wal_cli.options import with_context
from wal_cli.render import print_json, print_table
from wal_core.errors import ERRORS, EXIT_OK, NotFoundError, UsageError, WalError

_SHELLS = ("bash", "zsh", "fish")


@with_context()
def explain(
    context: Context,
    code: Annotated[str | None, typer.Argument(metavar="[CODE]", show_default=False)] = None,
) -> int:
    """Explain an error by its code, the word in brackets."""
    if code is None:
        _list(context)
        return EXIT_OK
    error = ERRORS.get(code.strip("[]"))
    if error is None:
        raise NotFoundError(f"there is no error code {code!r}", hint="wal explain")
    if context.json:
        print_json(_as_json(error))
        return EXIT_OK
    print(f"{error.code}  (exit status {error.exit_status})\n")
    print(inspect.getdoc(error))
    if error.default_hint:
        print(f"\nTry: {error.default_hint}")
    return EXIT_OK


@with_context(outputs=("text",))
def completion(
    context: Context,
    shell: Annotated[str, typer.Argument(metavar="bash|zsh|fish", show_default=False)],
) -> int:
    """Print the completion script of a shell.

    For bash: eval "$(wal completion bash)"."""
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    if shell not in _SHELLS:
        raise UsageError(f"no completion for {shell!r}", hint="wal completion bash|zsh|fish")
    print(get_completion_script(prog_name="wal", complete_var="_WAL_COMPLETE", shell=shell))
    return EXIT_OK


def _list(context: Context) -> None:
    errors = sorted(ERRORS.values(), key=lambda error: (error.exit_status, error.code))
    if context.output == "ndjson":
        for error in errors:
            print_json(_as_json(error))
    elif context.json:
        print_json([_as_json(error) for error in errors])
    else:
        rows = [(error.code, error.exit_status, _text(error).splitlines()[0]) for error in errors]
        print_table(context, ("CODE", "EXIT", "MEANING"), rows)


def _as_json(error: type[WalError]) -> dict[str, object]:
    return {
        "code": error.code,
        "exit": error.exit_status,
        "retryable": error.retryable,
        "hint": error.default_hint,
        "text": _text(error),
    }


def _text(error: type[WalError]) -> str:
    return inspect.getdoc(error) or ""

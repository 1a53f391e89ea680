"""``jmi``: from what is typed to a command, and from whatever goes wrong to one sentence."""

import io
import os
import sys
import warnings
from typing import Annotated

import typer

import jmi
from jmi.cli import failures
from jmi.cli.commands import as_typed, find_commands
from jmi.engine import program_cache
from jmi.errors import printable


def main() -> None:
    """Run the command line; whatever goes wrong ends in one sentence on stderr and an exit code."""
    # What XLA logs is for its authors; what fails there is an exception here.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # tokens that a terminal's encoding lacks
    code = 0
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            # Not application()(), which would end for some failures in its own words.
            command = typer.main.get_command(application())
            with command.make_context("jmi", sys.argv[1:] or ["--help"]) as context:
                command.invoke(context)
            sys.stdout.flush()
        except (Exception, KeyboardInterrupt) as error:
            code = failures.ended(error)
    sys.exit(code)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {printable(message, None)}", file=sys.stderr)
    if "jax" in sys.modules:
        program_cache.forget_damaged(str(message))


def application() -> typer.Typer:
    """All commands that are found, in alphabetical order."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.callback()(_of_all_commands)
    for name, entry in sorted(find_commands().items()):
        try:
            app.command(name)(as_typed(entry.load()))
        except Exception as error:  # whatever another package has wrong, the other commands work
            _show_warning(f"the command {name} cannot be loaded from {entry.value}: {error}")
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"jmi {jmi.__version__}")
        raise typer.Exit


def _of_all_commands(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    """Mechanistic interpretability for language models in JAX."""

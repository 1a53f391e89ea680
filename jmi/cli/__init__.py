"""The ``jmi`` command: one sub-command, one file.

The only part of the core that imports the other packages: nothing imports it.
"""

import io
import sys
import warnings

import typer

from jmi.cli import attribute, failures, inspect, knockout, patch, sites
from jmi.errors import printable

app = typer.Typer(
    help="Mechanistic interpretability for language models in JAX.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("attribute")(attribute.command)
app.command("inspect")(inspect.command)
app.command("knockout")(knockout.command)
app.command("patch")(patch.command)
app.command("sites")(sites.command)


def main() -> None:
    """Run the command line; whatever goes wrong ends in one sentence on stderr and an exit code."""
    warnings.showwarning = lambda message, *args, **kwargs: print(
        f"warning: {printable(message, None)}", file=sys.stderr
    )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # tokens that a terminal's encoding lacks
    code = 0
    try:
        # Not app(), which would end for some failures in its own words.
        command = typer.main.get_command(app)
        with command.make_context("jmi", sys.argv[1:] or ["--help"]) as context:
            command.invoke(context)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        code = failures.ended(error)
    sys.exit(code)

"""The command line: one command per verb, thin; torch is loaded only when a command needs it."""

# Imported in the order of --help.
from pmsm.cli import demo, explain, train, calibrate, runs, compare, report, show, export  # noqa: F401, I001
from pmsm.cli.app import app


def main() -> None:
    """Run the command line."""
    app()

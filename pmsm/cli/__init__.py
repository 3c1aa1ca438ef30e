"""The command line: one command per verb, thin; torch is loaded only when a command needs it."""

from pmsm.cli import demo, explain, train, runs, show  # noqa: F401, I001 -- registered in this order, that of --help
from pmsm.cli.app import app


def main() -> None:
    """Run the command line."""
    app()

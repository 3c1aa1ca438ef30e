"""`pmsm report`: one page that tells everything about a run."""

from pathlib import Path
from typing import Annotated

import typer

from pmsm.cli.app import Json, RunFolder, Threads, Tracked, command, find_modules, note, tell, use_threads


@command
def report(
    run: RunFolder,
    out: Annotated[
        Path | None, typer.Option(help="The HTML file. Default: report.html in the folder.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Measure anew, even where record.json is there.")
    ] = False,
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Write a run as one HTML file that loads nothing: proof, accuracy, entropy, spikes, energy, commands.

    Example: pmsm report runs/nmnist --out nmnist.html
    """
    from pmsm.study.entries import RECORD, RUN, has_record
    from pmsm.study.report import write_report
    from pmsm.study.run_record import record_of_run, write_record

    use_threads(threads)
    find_modules()
    if again and (run / RUN).exists():
        (run / RECORD).unlink(missing_ok=True)
    made = not has_record(run)
    if made:
        note("measuring; record.json keeps what is found")
    record = record_of_run(run, Tracked)
    if made:
        write_record(run, record)
    path = write_report(record, out or run / "report.html")
    tell({"report": str(path), "bytes": path.stat().st_size}, json, f"Report: {path}")

"""`aira report runs=outputs/<date>/<run>`: an HTML report, and a Weights & Biases report, on finished runs."""

import sys
from pathlib import Path

from aira.commands.shell import command
from aira.config.compose import compose_settings
from aira.config.schema import Report
from aira.errors import AiraError
from aira.files import check_writable, write_atomically

OURS = b'<meta name="generator" content="Aira">'
"""A line in the head of every report that this command writes."""


@command("report")
def main() -> None:
    """Compose conf/report.yaml with the command line, and write the report."""
    settings = compose_settings(Report, sys.argv[1:])
    folders = [settings.runs] if isinstance(settings.runs, str) else settings.runs
    if not folders:
        raise AiraError("runs=[]: name a folder, or several. Such as: aira report runs=outputs")
    output = Path(settings.output or Path(folders[0]) / "report.html")
    if output.exists() and not output.is_file():
        raise AiraError(f"output={output} is no file. Name one: output=<file>.html.")
    if output.exists() and OURS not in output.read_bytes()[:1000]:
        raise AiraError(f"output={output} exists, and is no report of Aira's. Name another file: output=<file>.html.")
    check_writable("output", str(output.parent))
    from aira.reports.page import page  # matplotlib is imported only after the command line was checked
    from aira.reports.runs import find_runs

    by_folder = {run.folder.resolve(): run for folder in folders for run in find_runs(Path(folder))}
    runs = list(by_folder.values())  # each once, also if one of the folders is in another
    title = settings.title or Path(folders[0]).resolve().name
    write_atomically(output, page(runs, title))
    print(output)
    if settings.wandb:
        from aira.reports.wandb import report

        print(report(runs, title, settings.project, settings.entity, output.with_suffix(".json")))


if __name__ == "__main__":
    main()

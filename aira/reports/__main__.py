"""`python -m aira.reports runs=outputs/<date>/<run>`: a page, and a report of Weights & Biases, on finished runs."""

import sys
from pathlib import Path

from aira.commandline import command
from aira.config import compose_config, plain


@command("reports")
def main() -> None:
    """Compose conf/reports.yaml with the command line, and write what it asks for."""
    values = plain(compose_config("reports", sys.argv[1:]))
    folders = [values["runs"]] if isinstance(values["runs"], str) else values["runs"]
    from aira.reports.page import page  # matplotlib is imported only once the command line is known to be right
    from aira.reports.runs import find_runs

    runs = [run for folder in folders for run in find_runs(Path(folder))]
    title = values["title"] or Path(folders[0]).resolve().name
    output = Path(values["output"] or Path(folders[0]) / "report.html")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page(runs, title), encoding="utf-8")
    print(output)
    if values["wandb"]:
        from aira.reports.wandb import report

        print(report(runs, title, values["project"], values["entity"], output.with_suffix(".json")))


if __name__ == "__main__":
    main()

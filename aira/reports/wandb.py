"""The same story as a report of Weights & Biases."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aira.errors import AiraError
from aira.files import install_command, markdown, read_json, write_atomically
from aira.reports.page import CURVES, evaluations, number
from aira.reports.runs import Run
from aira.tracking.login import online


def report(runs: list[Run], title: str, project: str, entity: str | None, file: Path) -> str:
    """A report on the project's runs of these names: saved where there is a login, else written as its spec.

    Args:
        project: of Weights & Biases, in which `logger=wandb` put the runs.
        entity: user or team; None for that of the login.
        file: where the spec is written without a login.

    Returns:
        The report's address, or the file.

    Raises:
        AiraError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as library
    except ImportError as error:
        raise AiraError(f"wandb=true needs wandb-workspaces: {install_command('reports')}.") from error
    logged_in = online()
    if not logged_in and file.exists() and "blocks" not in (read_json(file) or {}):
        raise AiraError(
            f"{file} is there, and no report of Weights & Biases. Name another page: output=<folder>/<name>.html."
        )
    if not logged_in:
        entity = ""  # with a name, the library would ask the server for the project
    elif entity is None:
        import wandb

        entity = str(wandb.Api().default_entity)
    # in a filter as the library reads it, an = or a > of a name is an operator, quotes or not: so by their numbers
    names = ", ".join("'" + "".join(f"\\U{ord(one):08x}" for one in run.name) + "'" for run in runs)
    panels: list[Any] = [
        library.LinePlot(title=title_of, x="trainer/global_step", y=[f"{side}/{name}" for side in sides])
        for name, title_of in CURVES
        if (sides := [side for side in ("train", "val") if any(f"{side}/{name}" in run.curves for run in runs)])
    ]
    runset = library.Runset(project=project, entity=entity, name="Runs", filters=f"Name in [{names}]")
    answers = [[run.name, one["step"], one["question"], one["answer"]] for run in runs for one in run.samples[-3:]]
    figures = [
        [run.name, name, number(run.metrics[name])]
        for run in runs
        for name in run.values["method"]["summary"]
        if name in run.metrics
    ]
    blocks: list[Any] = [library.H1("Summary"), library.MarkdownBlock(_table(["run", "metric", "value"], figures))]
    blocks += [library.H1("Curves"), library.PanelGrid(runsets=[runset], panels=panels)]
    tasks, cells, _ = evaluations(runs)
    if tasks:
        blocks += [library.H1("Evaluation"), library.MarkdownBlock(_table(["", *tasks], cells))]
    if answers:
        blocks += [library.H1("Answers"), library.MarkdownBlock(_table(["run", "step", "question", "answer"], answers))]
    document = library.Report(
        project=project,
        entity=entity,
        title=title.encode(errors="replace").decode()[:128],
        description=f"{len(runs)} runs of Aira",
        blocks=blocks,
    )
    if logged_in:
        document.save()
        return str(document.url)
    write_atomically(file, document._to_model().spec.model_dump_json(by_alias=True, exclude_none=True, indent=2))
    return str(file)


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown; what stands in a cell is none."""
    lines = [list(map(markdown, heads)), ["---"] * len(heads), *(list(map(markdown, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

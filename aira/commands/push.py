"""`aira push run=outputs/<date>/<run> repo=<user>/<name>`: show the files of an export, and send them to the hub.

The model card is updated first, with later evaluations. Nothing is sent without `push=true`.
"""

import re
import sys
from pathlib import Path

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from aira.commands.shell import command
from aira.config.compose import compose_settings
from aira.config.schema import Push
from aira.errors import AiraError, reason_of
from aira.files import nearest_path, run_of_export, write_atomically
from aira.hub import reach_hub


@command("push")
def main() -> None:
    """Compose conf/push.yaml with the command line, show what would be sent, and send it with push=true."""
    settings = compose_settings(Push, sys.argv[1:])
    push(settings.run, settings.repo, private=settings.private, send=settings.push)


def push(run: str, repo: str, *, private: bool, send: bool) -> None:
    """Show the files and the card of a run's export, and send them.

    Args:
        run: a run's folder, or its export.
        repo: `<user or organisation>/<name>` on the hub; created if it does not exist.
        private: whether a repository that is created is private.
        send: whether to send anything.

    Raises:
        AiraError: there is no such run, the repository's name is not valid, there is no login, or the hub refuses.
    """
    folder = run_of_export(run)
    if folder is None:
        suggestion = "" if Path(run).expanduser().exists() else nearest_path(Path(run).expanduser())
        raise AiraError(
            f"run={run}: this is no folder of a run with an export.{suggestion} Runs are in outputs/<date>/."
        )
    forbidden = re.search(r"--|\.\.|[-.](/|$)|(^|/)[-.]|\.git$", repo)  # the hub's rules
    if forbidden or not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII) or len(repo) > 96:
        raise AiraError(f"repo={repo}: a repository's name is <user or organisation>/<name>.")
    from aira.models.export import model_card
    from aira.reports.runs import read_run

    finished, export = read_run(folder), folder / "export"
    for file in export.rglob("*"):
        if not file.resolve().is_relative_to(export.resolve()):
            raise AiraError(
                f"{file} leads out of the export, and is not sent: put the file itself there, or remove it."
            )
    try:
        card = model_card(finished.values, finished.metrics, finished.environment, finished.evaluations)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AiraError(
            f"{folder}/.hydra/config.yaml is not the configuration of a training run ({error!r})."
        ) from error
    write_atomically(export / "README.md", card)
    files = sorted(file for file in export.rglob("*") if file.is_file())
    print(
        f"{ModelCard(card).content}\n\nTo https://huggingface.co/{repo}" + (", private if it is new:" * private or ":")
    )
    for file in files:
        print(f"  {file.relative_to(export)!s:32} {file.stat().st_size / 1e6:10.2f} MB")
    if not send:
        print("Nothing was sent. push=true sends it.")
        return
    reach_hub()
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        print(
            f"Sent: {api.upload_folder(repo_id=repo, folder_path=export, commit_message=f'{finished.name}, by Aira')}"
        )
    except OfflineModeIsEnabled as error:
        raise AiraError(
            "Nothing was sent, since the hub is not asked: HF_HUB_OFFLINE=1 is set, or it did not answer. The same "
            f"command sends it once there is a network; elsewhere, `hf upload {repo} {export}` does."
        ) from error
    except (LocalTokenNotFoundError, HfHubHTTPError, OSError) as error:
        raise AiraError(f"The hub did not take it: {reason_of(error)} (`hf auth login` logs in.)") from error


if __name__ == "__main__":
    main()

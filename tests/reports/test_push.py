"""What would go to the hub is shown, and wrong requests are answered before anything is read."""

import sys

import pytest

from aira.models.push import main


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["run=missing", "repo=me/model"], "Name one: run=outputs/<date>/<run>"),
        (["run={run}", "repo=model"], "<user or organisation>/<name>"),
        (["run={run}", "repo=me/../model"], "<user or organisation>/<name>"),
        (["run={run}", "repo=me/model", "pusch=true"], "Did you mean 'push'?"),
        (["run={run}", "repo=me/model", "push=true"], "The hub did not take it"),
    ],
)
def test_errors(tmp_path, monkeypatch, capsys, make, arguments, message):
    """Catches a traceback, and a name that leads elsewhere. The last one fails because there is no network."""
    run = make("run", "method=sft")
    (run / "export").mkdir()
    (run / "export" / "config.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["push", *(text.format(run=run) for text in arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and message in capsys.readouterr().err

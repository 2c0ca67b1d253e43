"""What would go to the hub is shown, and wrong requests are answered before anything is read."""

import sys

import pytest

from aira.commands.push import main


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["run=missing", "repo=me/model"], "Runs are in outputs/"),
        (["run={run}", "repo=model"], "<user or organisation>/<name>"),
        (["run={run}", "repo=me/../model"], "<user or organisation>/<name>"),
        *(
            (["run={run}", f"repo={name}"], "<user or organisation>/<name>")
            for name in ("a/b--c", "a/b..c", "a/-b", "a-/b", "a/.b", "a/b.git", f"a/{'b' * 96}")
        ),
        (["run={run}", "repo=me/model", "pusch=true"], "Did you mean 'push'?"),
        (["run={run}", "repo=me/model", "push=true"], "Nothing was sent, since the hub is not asked: HF_HUB_OFFLINE=1"),
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


def test_a_strangers_run_is_sent_without_what_is_here(make, tmp_path, monkeypatch, capsys):
    """Catches a token of the environment in the card, and a link in the export that leads to a file of the user's."""
    monkeypatch.setenv("PLANTED_TOKEN", "hf_planted")
    run = make("run", "method=sft")
    (run / "export").mkdir()
    (run / "export" / "config.json").write_text("{}")
    file = run / ".hydra" / "config.yaml"
    file.write_text(file.read_text().replace("name: sft", "name: ${oc.env:PLANTED_TOKEN}"))
    monkeypatch.setattr(sys, "argv", ["push", f"run={run}", "repo=me/model"])
    main()
    card = (run / "export" / "README.md").read_text()
    assert "hf_planted" not in card + capsys.readouterr().out and "${oc.env:PLANTED_TOKEN}" in card
    (tmp_path / "key").write_text("private")
    (run / "export" / "model.safetensors").symlink_to(tmp_path / "key")
    with pytest.raises(SystemExit):
        main()
    assert "leads out of the export" in capsys.readouterr().err
    (run / "export" / "model.safetensors").unlink()
    file.write_text(file.read_text().replace("code: en", "code: xx"))
    with pytest.raises(SystemExit):
        main()
    assert "is not the configuration of a training run" in capsys.readouterr().err

"""Checkpoints survive a full disk, and a run goes on from none but its own."""

import errno
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch

from aira.callbacks.checkpoint import Checkpoints, changed_settings, check_shapes, read_state
from aira.errors import AiraError
from aira.files import damage
from aira.parts import RunStart


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, number):
    """Catches a whole checkpoint that is overwritten by a part of the next one, and an error that is no help."""
    callback = Checkpoints(every_n_train_steps=1, monitor="val/loss", mode="min").begin(RunStart(tmp_path, {}))
    (tmp_path / "checkpoints").mkdir()

    def save(content, step):
        def write(path, weights_only):
            path.write_text(content)
            if content == "part":
                raise OSError(number, "the library's own words")

        return SimpleNamespace(
            save_checkpoint=write,
            is_global_zero=True,
            global_step=step,
            enable_validation=False,
            val_check_batch=1,
            callback_metrics={},
        )

    with pytest.raises(AiraError, match=r"No space left .* step 1. There is none before it"):
        callback.on_train_batch_end(save("part", 1), None, None, None, 0)
    callback.on_train_batch_end(save("whole", 2), None, None, None, 0)
    with pytest.raises(AiraError, match=r"No space left .* step 3.*ckpt_path=last"):
        callback.on_train_batch_end(save("part", 3), None, None, None, 1)
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    assert (tmp_path / "checkpoints" / "last.ckpt").read_text() == "whole"


def test_the_best_after_one_that_is_no_number(tmp_path, capsys):
    """Catches a best.ckpt of a validation whose loss was NaN, or one that is passed over without a word."""
    callback = Checkpoints(every_n_train_steps=1, monitor="val/loss", mode="min").begin(RunStart(tmp_path, {}))
    (tmp_path / "checkpoints").mkdir()
    for step, loss in enumerate([float("nan"), 2.0, 3.0, float("nan")], start=1):
        trainer = SimpleNamespace(
            save_checkpoint=lambda path, weights_only, step=step: path.write_text(str(step)),
            is_global_zero=True,
            global_step=step,
            state=SimpleNamespace(fn="fit"),
            sanity_checking=False,
            callback_metrics={"val/loss": torch.tensor(loss)},
        )
        callback.on_validation_end(trainer, None)
        assert (tmp_path / "checkpoints" / "best.ckpt").exists() == (step > 1)
    assert (tmp_path / "checkpoints" / "best.ckpt").read_text() == "2" and callback.best == 2.0
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == ["Step 1", "Step 4"] and "no number" in said[0]
    assert callback.metrics == {}  # of the last validation: what is no number is in no JSON


def test_processes_go_on_from_one_file(tmp_path):
    """Catches processes that have found different checkpoints and train on with both."""
    callback = Checkpoints(every_n_train_steps=1, monitor="val/loss", mode="min").begin(RunStart(tmp_path, {}))

    def begin(path, first):
        strategy = SimpleNamespace(broadcast=lambda own: first)
        callback.setup(SimpleNamespace(ckpt_path=path, strategy=strategy), None, "fit")

    begin("a/last.ckpt", "a/last.ckpt"), begin(None, "None")
    for path in ("a/last.ckpt", None):
        with pytest.raises(AiraError, match=r"Name one for all: ckpt_path=a/previous.ckpt"):
            begin(path, "a/previous.ckpt")


WHOLE = {"state_dict": {"model.a": torch.zeros(2, 3)}, "optimizer_states": [], "callbacks": {}, "global_step": 3}


@pytest.mark.parametrize(
    "content, message",
    [
        ({"a": 1}, "it has no callbacks, global_step, optimizer_states, state_dict"),
        ([1, 2], "it has no callbacks"),
        ({**WHOLE, "hyper_parameters": Fraction(1, 3)}, "this is no checkpoint of Aira: Weights only load failed"),
        ({"state_dict": {}, "global_step": 3, "callbacks": {}}, "it has no optimizer_states.*last.ckpt"),
    ],
)
def test_a_foreign_checkpoint_is_refused(tmp_path, content, message):
    """Catches code in a file that is run on loading, and a file that fails in the middle of Lightning."""
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(AiraError, match=message):
        read_state(tmp_path / "last.ckpt")


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    """Catches a checkpoint of other shapes, or one that is refused although it fits."""
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(WHOLE, path)
    module = torch.nn.Module()
    module.model = torch.nn.Module()
    module.model.a = torch.nn.Parameter(torch.ones(2, 3))
    check_shapes(path, read_state(path)["shapes"], module)
    module.model.a = torch.nn.Parameter(torch.ones(2, 4))
    module.model.b = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(AiraError, match=r"2 of its tensors differ, .* model.a: \(2, 3\) there, \(2, 4\) here"):
        check_shapes(path, read_state(path)["shapes"], module)


RECORD = {"settings": {"seed": 0, "optimizer.lr": 0.1, "trainer.max_steps": 60}, "rows": "r", "tokenizer": "t"}


CHANGES = [
    ({}, 60, {}),
    ({"settings": {**RECORD["settings"], "optimizer.lr": 0.2}}, 60, {"optimizer.lr": [0.1, 0.2]}),
    ({"settings": {"seed": 0, "optimizer.lr": 0.1}}, 60, {"trainer.max_steps": [60, None]}),
    ({"settings": {**RECORD["settings"], "new": [1]}}, 60, {"new": [None, [1]]}),
    ({"settings": {**RECORD["settings"], "seed": 1}, "rows": "x"}, 60, "rows of data.path.*seed=0 there, 1 here"),
    ({"rows": "x"}, 60, "rows that it held out would be trained on"),
    ({"tokenizer": "x"}, 60, "another tokenizer"),
    ({}, 39, "is at step 40, and is to end after 39"),
]


@pytest.mark.parametrize("now, steps, found", CHANGES)
def test_what_has_changed_is_told_or_refused(tmp_path, now, steps, found):
    """Catches a run that goes on with other settings, another split or another end without a word."""
    state = {"shapes": {}, "step": 40, "record": RECORD}
    if isinstance(found, str):
        with pytest.raises(AiraError, match=found):
            changed_settings(tmp_path, state, {**RECORD, **now}, steps)
    else:
        assert changed_settings(tmp_path, state, {**RECORD, **now}, steps).get("settings", {}) == found
        assert changed_settings(tmp_path, {**state, "record": {}}, {**RECORD, **now}, steps) == {}  # by an old version


def test_damage(tmp_path):
    """Catches a file that is cut short or changed and taken to be whole."""
    file = tmp_path / "last.ckpt"
    torch.save(WHOLE, file)
    assert damage(file) is None
    content = file.read_bytes()
    place = content.index(torch.zeros(2, 3).numpy().tobytes())
    file.write_bytes(content[:place] + b"\1" + content[place + 1 :])
    assert "bytes of it have changed" in damage(file)
    for part in (content[:-1], content[: len(content) // 2], b"", b"nothing like it"):
        file.write_bytes(part)
        assert "it is cut short" in damage(file)

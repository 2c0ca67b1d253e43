"""Checkpoints survive a full disk."""

import errno
from types import SimpleNamespace

import pytest

from aira.callbacks.checkpoint import Checkpoints
from aira.errors import AiraError


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path):
    """Catches a whole checkpoint that is overwritten by a part of the next one, and an error that is no help."""
    callback = Checkpoints(tmp_path, started=0.0, every_n_train_steps=1, monitor="val/loss", mode="min")
    (tmp_path / "checkpoints").mkdir()

    def save(content):
        def write(path, weights_only):
            path.write_text(content)
            if content == "part":
                raise OSError(errno.ENOSPC, "No space left on device")

        return SimpleNamespace(
            save_checkpoint=write, is_global_zero=True, global_step=3, enable_validation=False, val_check_batch=1
        )

    callback.on_train_batch_end(save("whole"), None, None, None, 0)
    with pytest.raises(AiraError, match=r"No space left .* step 3.*ckpt_path=last"):
        callback.on_train_batch_end(save("part"), None, None, None, 1)
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    assert (tmp_path / "checkpoints" / "last.ckpt").read_text() == "whole"

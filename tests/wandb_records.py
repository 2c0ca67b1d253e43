"""Reading an offline run of Weights & Biases: a LevelDB log of the messages that the client's own package defines."""

import struct
import time

from wandb.proto import wandb_internal_pb2

BLOCK = 32768


def records(file, seconds=30):
    """The records of the `.wandb` file of a finished run, in order; its end is written in the background."""
    until = time.monotonic() + seconds
    while True:
        found = list(_whole(file))
        if any(record.HasField("exit") for record in found):
            return found
        assert time.monotonic() < until, f"{file} has no end after {seconds} s"
        time.sleep(0.1)


def _whole(file):
    content, position, parts = file.read_bytes(), 7, []  # the file's own header has 7 bytes
    while position + 7 <= len(content):
        if BLOCK - position % BLOCK < 7:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        parts.append(content[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def artifacts(file):
    """Artifacts by type: name, names of the files, and whether the run used (and did not make) it."""
    found = {}
    for record in records(file):
        told = record.request.log_artifact.artifact if record.request.HasField("log_artifact") else record.artifact
        if told.name:
            files = {entry.path for entry in told.manifest.contents}
            found.setdefault(told.type, {})[told.name] = (files, told.use_after_commit, told.digest)
    return found

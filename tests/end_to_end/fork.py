"""Runs train.py in forks of one process that has imported the libraries, which takes longer than the tests' own runs.

Each line of its input is JSON: the command, its folder, and the file for what it prints. It answers with the status.
"""

import json
import os
import runpy
import signal
import sys

import aira.sweeps
import aira.training
import aira.trials  # noqa: F401


def serve() -> None:
    """Answer until the input ends; a fork leaves by what train.py ends with."""
    for line in sys.stdin:
        asked = json.loads(line)
        sys.stdout.flush()
        child = os.fork()
        if not child:
            printed = os.open(asked["printed"], os.O_WRONLY | os.O_CREAT)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(printed, 1)
            os.dup2(printed, 2)
            os.chdir(asked["cwd"])
            signal.alarm(900)
            sys.argv = asked["command"]
            runpy.run_path(sys.argv[0], run_name="__main__")
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()

"""Runs Aira's commands in forks of one process that has imported the libraries, which takes longer than many a test.

Each line of its input is JSON, and each is answered by a line. `command` (a script and its arguments, or those of
`aira` after an empty text), `cwd`, `typed` and `printed` (files, the latter or a FIFO) start a fork: its process id.
`wait` and a process id: its status once it has ended, or with `poll` null until then.
"""

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import sys

import aira

LIBRARIES = ("codecarbon.core.resource_tracker", "matplotlib.backends.backend_svg", "pandas")
"""What Aira imports only where it is needed."""

for name in (*LIBRARIES, *(module.name for module in pkgutil.walk_packages(aira.__path__, "aira."))):
    if not name.endswith(("__main__", "tracking.wandb")):  # wandb makes a folder, which the first fork would remove
        importlib.import_module(name)


def serve() -> None:
    """Answer until the input ends, and end what was started; a fork leaves by what its command ends with."""
    gc.collect()
    gc.freeze()  # or the first collection of each fork writes to, and so copies, every page
    running: set[int] = set()
    for line in sys.stdin:
        asked = json.loads(line)
        if "command" in asked:
            sys.stdout.flush()
            child = os.fork()
            if not child:
                printed = os.open(asked["printed"], os.O_WRONLY | os.O_CREAT)
                os.dup2(os.open(asked["typed"], os.O_RDONLY), 0)
                os.dup2(printed, 1)
                os.dup2(printed, 2)
                os.close(printed)
                # streams of their own, since they know whether they are of a file
                sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
                sys.stderr = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
                sys.stdin = open(0, closefd=False)  # noqa: SIM115
                os.chdir(asked["cwd"])
                signal.alarm(900)
                sys.argv = asked["command"]
                if sys.argv[0]:
                    runpy.run_path(sys.argv[0], run_name="__main__")
                else:  # modules of the user's own are found where the command is run
                    sys.path.insert(0, asked["cwd"])
                    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
                    runpy.run_module("aira", run_name="__main__", alter_sys=True)
                return
            running.add(child)
            print(child, flush=True)
        else:
            ended, status = os.waitpid(asked["wait"], os.WNOHANG if asked["poll"] else 0)
            running.discard(ended)
            print(json.dumps(os.waitstatus_to_exitcode(status) if ended else None), flush=True)
    for child in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    serve()

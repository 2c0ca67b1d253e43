"""The hub of Hugging Face: asked once whether it answers, since its client goes on asking for minutes."""

import functools
import os
import sys
import threading

from huggingface_hub import constants, get_session

from aira.errors import reason_of

PATIENCE = 5.0
"""Seconds that the hub has to answer."""

OFFLINE = "HF_HUB_OFFLINE=1 takes what was downloaded before, without asking the hub"


@functools.cache
def reach_hub() -> None:
    """Ask the hub for a sign of life; where it gives none, go on as with HF_HUB_OFFLINE=1, which is told."""
    if constants.HF_HUB_OFFLINE:
        return
    problem = ["no answer"]

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=PATIENCE)
            problem.clear()
        except Exception as error:  # of whatever HTTP client the hub's library has
            problem[:] = [reason_of(error)]

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name has no limit of its own
    asking.start()
    asking.join(PATIENCE)
    if not problem:
        return
    print(
        f"Notice: {constants.ENDPOINT} cannot be reached ({problem[0]}). Only what was downloaded before is found.",
        file=sys.stderr,
    )
    os.environ["HF_HUB_OFFLINE"] = "1"  # for the processes of this one
    constants.HF_HUB_OFFLINE = True
    if "datasets.config" in sys.modules:
        sys.modules["datasets.config"].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]

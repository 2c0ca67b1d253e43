"""The Hugging Face hub: checked once whether it answers, since its client retries for minutes."""

import functools
import os
import sys
import threading

from huggingface_hub import constants, get_session

from aira.errors import reason_of

TIMEOUT = 5.0
"""Seconds within which the hub has to answer."""

OFFLINE = "HF_HUB_OFFLINE=1 takes what was downloaded before, without asking the hub"


@functools.cache
def reach_hub() -> None:
    """Check that the hub answers; if it does not, print a notice and continue as with HF_HUB_OFFLINE=1."""
    if constants.HF_HUB_OFFLINE:
        return
    problem = ["no answer"]

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
            problem.clear()
        except Exception as error:  # of whichever HTTP client the hub's library uses
            problem[:] = [reason_of(error)]

    request = threading.Thread(target=ask, daemon=True)  # a DNS lookup has no timeout of its own
    request.start()
    request.join(TIMEOUT)
    if not problem:
        return
    print(
        f"Notice: {constants.ENDPOINT} cannot be reached ({problem[0]}). Only what was downloaded before is found.",
        file=sys.stderr,
    )
    os.environ["HF_HUB_OFFLINE"] = "1"  # for child processes
    constants.HF_HUB_OFFLINE = True
    if "datasets.config" in sys.modules:
        sys.modules["datasets.config"].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]

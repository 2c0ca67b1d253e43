"""Whether Weights & Biases is to be talked to; nothing large is imported here."""

import os


def online() -> bool:
    """There is a login, and `WANDB_MODE` does not say that all is to stay here."""
    import wandb

    return os.environ.get("WANDB_MODE", "online") == "online" and bool(
        os.environ.get("WANDB_API_KEY") or wandb.api.api_key
    )

"""`aira evaluate model.path=<run>/export eval=aira-en`: evaluate models; `--help` lists the choices."""

from typing import Any

import hydra
from omegaconf import DictConfig

from aira.commands.shell import check, readable_errors
from aira.config.conf import CONF


def main() -> None:
    """Check the command line, and evaluate."""
    check("evaluate")
    _run()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="evaluate")
@readable_errors
def _run(cfg: DictConfig) -> Any:
    from aira.evaluating import evaluate  # torch is imported only after the configuration was checked

    return evaluate(cfg)


if __name__ == "__main__":
    main()

"""Measure models: `python evaluate.py model.path=<run>/export eval=aira-en`; `--help` lists the choices."""

from typing import Any

import hydra
from omegaconf import DictConfig

from aira.commandline import check, readable_errors
from aira.config import CONF


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="evaluate")
@readable_errors
def main(cfg: DictConfig) -> Any:
    from aira.evaluating import evaluate  # torch is imported only once the configuration is known to be right

    return evaluate(cfg)


if __name__ == "__main__":
    check("evaluate")
    main()

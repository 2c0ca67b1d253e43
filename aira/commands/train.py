"""`aira train model=opt-1b3 method=sft language=pt`: train a model; `--help` lists the choices."""

from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from aira.commands.shell import check, readable_errors
from aira.config.conf import CONF


def main() -> None:
    """Check the command line, and run what it asks for: a training run, a search, or a trial of a multirun."""
    check("train")
    _run()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
@readable_errors
def _run(cfg: DictConfig) -> Any:
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        from aira.trials import run_trial_of_multirun

        return run_trial_of_multirun(cfg.method.compare_by)
    if cfg.sweep:
        from aira.sweeps import sweep

        return sweep(cfg)
    from aira.training import train  # torch is imported only after the configuration was checked

    return train(cfg)


if __name__ == "__main__":
    main()

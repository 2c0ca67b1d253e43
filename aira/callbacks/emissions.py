"""Energy and emissions of a run, estimated by CodeCarbon."""

import logging
from typing import Any

import pytorch_lightning as pl

from aira.parts import Part, RunEnd


def start_tracker(country: str) -> Any:
    """Start CodeCarbon's offline tracker, which uses no network and writes no file.

    Args:
        country: three-letter ISO code of the country whose energy mix gives the carbon intensity.
    """
    from codecarbon import OfflineEmissionsTracker

    logging.getLogger("codecarbon").disabled = True
    tracker = OfflineEmissionsTracker(
        country_iso_code=country, save_to_file=False, log_level="critical", allow_multiple_runs=True
    )
    tracker.start()
    return tracker


def energy(tracker: Any, stop: bool = False) -> dict[str, float]:
    """The energy in kWh and the kg of CO2 equivalents since the start."""
    carbon = (tracker.stop() if stop else tracker.flush()) or 0.0
    return {"energy_kwh": tracker._total_energy.kWh, "co2_kg": carbon}


class Emissions(pl.Callback, Part):
    """Measures the energy and emissions of the run, including the time before it was resumed.

    Args:
        country: see `start_tracker`.
    """

    def __init__(self, country: str) -> None:
        self.country = country
        self.before = {"energy_kwh": 0.0, "co2_kg": 0.0}
        self.measured = dict(self.before)
        self.tracker: Any = None

    def state_dict(self) -> dict[str, Any]:
        """The figures so far."""
        return self._with_before(energy(self.tracker)) if self.tracker else self.measured

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them, to be added to."""
        self.before = self.measured = state_dict

    def _with_before(self, figures: dict[str, float]) -> dict[str, float]:
        return {name: value + self.before[name] for name, value in figures.items()}

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start measuring, on rank 0."""
        if trainer.is_global_zero:
            self.tracker = start_tracker(self.country)

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Stop, and keep the figures."""
        if trainer.is_global_zero:
            self.measured = self._with_before(energy(self.tracker, stop=True))
            self.tracker = None

    def finish(self, run: RunEnd) -> dict[str, float]:
        """The figures of the whole run."""
        return {f"emissions/{name}": value for name, value in self.measured.items()}

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Stop the tracker's thread when training ends early."""
        if self.tracker:
            self.tracker.stop()

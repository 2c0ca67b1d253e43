"""Energy and emissions of a run, estimated by CodeCarbon."""

import logging
from typing import Any

import pytorch_lightning as pl


def start_tracker(country: str) -> Any:
    """Start measuring with CodeCarbon's offline tracker: no network is asked, nothing is written.

    Args:
        country: three-letter ISO code; the carbon intensity of its energy mix is taken.
    """
    from codecarbon import OfflineEmissionsTracker

    logging.getLogger("codecarbon").disabled = True
    tracker = OfflineEmissionsTracker(
        country_iso_code=country, save_to_file=False, log_level="critical", allow_multiple_runs=True
    )
    tracker.start()
    return tracker


def stop_tracker(tracker: Any) -> dict[str, float]:
    """Stop, and return kWh and kg of CO2 equivalents."""
    carbon = tracker.stop() or 0.0
    return {"energy_kwh": tracker._total_energy.kWh, "co2_kg": carbon}


class Emissions(pl.Callback):
    """Measures the run.

    Args:
        country: see `start_tracker`.
    """

    def __init__(self, country: str) -> None:
        self.country = country
        self.measured: dict[str, float] = {}

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start measuring, on rank 0."""
        if trainer.is_global_zero:
            self.tracker = start_tracker(self.country)

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Stop, and keep the figures."""
        if trainer.is_global_zero:
            self.measured = stop_tracker(self.tracker)

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Stop the tracker's thread when training ends early."""
        if hasattr(self, "tracker"):
            self.tracker.stop()

"""Energy and emissions of a run, estimated by CodeCarbon."""

import logging

import pytorch_lightning as pl


class Emissions(pl.Callback):
    """Measures the run with CodeCarbon's offline tracker: no network is asked, nothing is written outside the run.

    Args:
        country: three-letter ISO code; the carbon intensity of its energy mix is taken.
    """

    def __init__(self, country: str) -> None:
        self.country = country
        self.measured: dict[str, float] = {}

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start measuring, on rank 0."""
        if trainer.is_global_zero:
            from codecarbon import OfflineEmissionsTracker

            logging.getLogger("codecarbon").disabled = True
            self.tracker = OfflineEmissionsTracker(
                country_iso_code=self.country, save_to_file=False, log_level="critical", allow_multiple_runs=True
            )
            self.tracker.start()

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Stop, and keep kWh and kg of CO2 equivalents."""
        if trainer.is_global_zero:
            carbon = self.tracker.stop() or 0.0
            self.measured = {"energy_kwh": self.tracker._total_energy.kWh, "co2_kg": carbon}

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Stop the tracker's thread when training ends early."""
        if hasattr(self, "tracker"):
            self.tracker.stop()

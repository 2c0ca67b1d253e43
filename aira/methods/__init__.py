"""The four methods, as LightningModules with one base."""

"""The four ways to align a model, as LightningModules over one shared base."""

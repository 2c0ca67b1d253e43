"""Backbones: where they come from, how they speak, how they read packed rows, how they are exported."""

"""Reports on runs and sweeps: an HTML file, and a report of Weights & Biases."""

"""Callbacks of training: checkpoints, signals, samples, scores, throughput, emissions, progress."""

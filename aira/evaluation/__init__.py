"""Measuring what was trained: benchmarks, preferences and toxicity, beside simple baselines and with intervals."""

"""What happens beside the training steps: checkpoints, samples, throughput, emissions, loggers."""

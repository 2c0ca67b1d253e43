"""Where a run tells its figures to: CSV, TensorBoard, Weights & Biases."""

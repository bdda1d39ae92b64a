"""Following a run: the live view, and figures for TensorBoard, MLflow or Weights & Biases."""

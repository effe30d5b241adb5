"""Tasks: rows to batches, losses and metrics."""

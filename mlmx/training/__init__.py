"""What does the work: the worker process, the trainer, checkpoints and tracking."""

"""Training: configuration, loop, checkpoints, logs. Imports nothing itself: `process` runs before torch."""

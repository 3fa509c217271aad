"""A run's life on disk: where it starts, resume, bases, sweeps, fused runs."""

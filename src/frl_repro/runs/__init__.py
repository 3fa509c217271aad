"""A run's life on disk: where it starts, resume, bases, sweeps, runs side by side."""

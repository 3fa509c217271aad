"""The algorithm: the loop, losses, schedules, and what varies by class (`frl`)."""

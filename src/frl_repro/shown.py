"""How many classes or settings a figure or table shows. Imports nothing: help answers before pandas is loaded."""

DEFAULT_TOP = 10
"""Of more than twice this, so many of the worst and of the best are shown unless ``top`` says otherwise."""

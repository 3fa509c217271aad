"""Tables, figures and the HTML page of what was measured. Needs neither torch nor Hydra."""

DEFAULT_TOP = 10
"""Of more classes or settings than twice this, the worst and the best are shown unless ``top`` says otherwise."""

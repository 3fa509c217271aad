"""The theory of unequal class errors on two Gaussian classes, as functions: no torch, no data. See docs/theory.md."""

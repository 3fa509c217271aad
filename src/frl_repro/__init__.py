"""frl_repro: class-wise fairness of adversarially trained image classifiers."""

__version__ = "0.1.0"

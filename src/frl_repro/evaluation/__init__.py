"""Class-wise errors of a model on a split, AutoAttack, and sanity checks."""

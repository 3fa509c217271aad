"""What is claimed of each method on the bench, as criteria that can fail (docs/registration.md, second part)."""

from __future__ import annotations

from dataclasses import dataclass

GAIN, PRICE = "gain", "price"


@dataclass(frozen=True)
class Claim:
    """A published claim.

    Attributes
    ----------
    text : str
        What its source says.
    price : float
        How much the robust error of all classes may rise, in [0, 1]: the published loss on average, rounded up to
        whole points; 1 point where there is no number.
    """

    text: str
    price: float = 0.01


_FRL = Claim("lowers the worst class's natural and robust error at a loss on average", 0.06)
_KEEPS_AVERAGE = Claim("better worst class, average kept")

CLAIMS = {
    "reweight": _FRL,
    "margins": _FRL,
    "combined": _FRL,
    "baseline_reweight": _FRL,
    "cfa": Claim("better worst class, no loss on average"),
    "dafa": Claim("better worst class at little loss on average"),
    "wat": Claim("better worst class at some loss on average", 0.04),
    "faal": Claim("better worst class from a base in few epochs, at a loss on average", 0.05),
    "bat": Claim("fairer at some loss on average", 0.04),
    "cfol": _KEEPS_AVERAGE,
    "csr": _KEEPS_AVERAGE,
    "variance": _KEEPS_AVERAGE,
    "codat": _KEEPS_AVERAGE,
    "group_dro": _KEEPS_AVERAGE,
    "head_norm": _KEEPS_AVERAGE,
    "robust_lt": Claim("better worst class on imbalanced data, average kept"),
}
"""By contestant; controls claim nothing."""

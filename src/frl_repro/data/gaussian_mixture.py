"""Two Gaussian classes as images of one row: what theorems on unequal class errors are about (docs/theory.md).

The mixture is given in pixel units and lies around 0.5, so that radii mean what they mean elsewhere. Pixels are
float32, not grey levels, and the classes are so narrow that neither an image nor an attacked one leaves [0, 1]: nothing
is rounded to grey levels or clipped.
"""

import torch
from torch import Tensor

from frl_repro.basics.errors import UserError
from frl_repro.data.dataset import Split
from frl_repro.theory.gaussian import Mixture

CENTRE = 0.5
CLASS_NAMES = ("easy", "hard")  # y = -1 and y = +1
NUM_DEVIATIONS = 8.0  # a Gaussian number lies farther out once in 10^15
_SIGNS = (-1.0, 1.0)


def load_gaussian_mixture(mixture: Mixture, *, num_train: int, num_test: int, seed: int) -> tuple[Split, Split]:
    """Draw training and test samples; neither depends on how many the other has.

    Parameters
    ----------
    mixture : Mixture
        In pixel units.
    num_train, num_test : int
        Samples of each split. Class counts are R / (1 + R) of it, rounded, and the rest; shuffled.
    seed : int
        Of everything drawn; the global random state is neither read nor changed.

    Returns
    -------
    tuple of Split
        float32 images of shape (N, 1, 1, d), and labels: 0 for ``easy``, 1 for ``hard``.

    Raises
    ------
    UserError
        The mixture is so wide that samples, attacked within a radius of eta, could leave [0, 1]; or a class is empty.
    """
    needed = 2 * mixture.eta + NUM_DEVIATIONS * mixture.deviation_ratio * mixture.sigma
    if needed > CENTRE:
        raise UserError(
            f"dataset.eta={mixture.eta:g}, dataset.sigma={mixture.sigma:g} and dataset.deviation_ratio="
            f"{mixture.deviation_ratio:g} reach {needed:.3g} from the middle of [0, 1], at most {CENTRE:g} is there "
            f"(2 eta + {NUM_DEVIATIONS:g} deviation_ratio sigma): give smaller ones, only their ratio counts"
        )
    generator = torch.Generator().manual_seed(seed)
    train_seed, test_seed = torch.randint(2**62, (2,), generator=generator).tolist()
    return _draw("num_train", mixture, num_train, train_seed), _draw("num_test", mixture, num_test, test_seed)


def _draw(name: str, mixture: Mixture, num: int, seed: int) -> Split:
    num_easy = round(float(mixture.priors[0]) * num)
    if not 0 < num_easy < num:
        raise UserError(
            f"dataset.{name}={num} leaves a class without a sample at dataset.prior_ratio={mixture.prior_ratio:g}: "
            "give more samples"
        )
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.randperm(num, generator=generator) >= num_easy).long()
    noise = torch.randn(num, mixture.num_features, generator=generator, dtype=torch.float64)
    means = mixture.eta * torch.tensor(_SIGNS, dtype=torch.float64)
    deviations = mixture.sigma * torch.tensor(mixture.deviations)
    samples: Tensor = CENTRE + means[labels].unsqueeze(1) + deviations[labels].unsqueeze(1) * noise
    return Split(images=samples.float().view(num, 1, 1, -1), labels=labels)

"""Loss and gradient of TRADES and of every FRL method against plain double loops in float64, written from the formulas.

The loops know neither torch nor the project: softmax, cross-entropy, divergence, class weights, class radii and the
derivatives of a linear softmax classifier stand below as sums over samples and classes.
"""

import math

import pytest
import torch

from frl_repro.evaluation.class_errors import ClassErrors
from frl_repro.settings.config import RunConfig
from frl_repro.settings.parse import parse
from frl_repro.training import build
from frl_repro.training.frl import Rules, Weights
from support import composed, new_policy, step_loss

K, D, N = 3, 4, 7
NATURAL, BOUNDARY, COUNT = (0.50, 0.10, 0.05), (0.45, 0.20, 0.10), (200, 100, 100)
LABELS = (0, 1, 2, 2, 1, 0, 0)


def numbers(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


WEIGHT, BIAS = numbers(K, D, seed=0), numbers(K, seed=1)
IMAGES, DIRECTION = numbers(N, D, seed=2), numbers(N, D, seed=3).sign()


def shifted(x, y, *, factor):
    """Stands for an attack that goes as far as it may: 8/255 times the class's factor."""
    return x + 8 / 255 * (1 if factor is None else factor.unsqueeze(-1)) * DIRECTION


# --- the formulas ---------------------------------------------------------------------------------------------------


def overall(rates):
    return sum(rate * count for rate, count in zip(rates, COUNT, strict=True)) / sum(COUNT)


def violations(rates, tau):
    return [rate - overall(rates) - tau for rate in rates]


def dual_ascent(rates, tau, step, updates):
    """phi <- P(phi + step * violation); P clamps at 0 and rescales to a sum of 1/2 when it is larger."""
    phi = [0.0] * K
    for _ in range(updates):
        phi = [max(0.0, p + step * v) for p, v in zip(phi, violations(rates, tau), strict=True)]
        total = sum(phi)
        phi = [p * 0.5 / total for p in phi] if total > 0.5 else phi
    return phi


def simplex(phi):
    return [1 / K + p - sum(phi) / K for p in phi]


def margins(tau, step, updates, low, high):
    """exp(2 lambda), lambda <- lambda + step * violation of the boundary error, clamped."""
    total = [updates * step * v for v in violations(BOUNDARY, tau)]
    return [min(max(math.exp(2 * value), low), high) for value in total]


def softmax_of(alpha, rates, tau):
    powers = [math.exp(1 + alpha * v) for v in violations(rates, tau)]
    return [p / sum(powers) for p in powers]


ROBUST = [n + b for n, b in zip(NATURAL, BOUNDARY, strict=True)]
ONE = [1.0] * K
TWICE = 2  # updates of the policy
PAPER = {  # weights of the natural loss, of the boundary loss, factors of the radius
    "reweight": (
        simplex(dual_ascent(NATURAL, 0.10, 0.05, TWICE)), simplex(dual_ascent(BOUNDARY, 0.10, 0.10, TWICE)), ONE,
    ),
    "remargin": (simplex(dual_ascent(NATURAL, 0.07, 0.05, TWICE)), ONE, margins(0.07, 0.2, TWICE, 0.98, 2.5)),
    "combined": (
        simplex(dual_ascent(NATURAL, 0.07, 0.05, TWICE)), simplex(dual_ascent(BOUNDARY, 0.07, 0.10, TWICE)),
        margins(0.07, 0.2, TWICE, 0.98, 3.0),
    ),
    "baseline_reweight": (*[simplex(dual_ascent(ROBUST, 0.10, 0.05, TWICE))] * 2, ONE),
    "finetune": (ONE, ONE, ONE),
}  # fmt: skip
_FACTORS = [min(max(math.exp(v), 0.5), 2.0) for v in violations(BOUNDARY, 0.05)]
REPORT = {
    "reweight": (softmax_of(1, NATURAL, 0.05), softmax_of(1, BOUNDARY, 0.05), ONE),
    "remargin": (ONE, ONE, _FACTORS),
    "combined": (softmax_of(1, NATURAL, 0.05), softmax_of(1, BOUNDARY, 0.05), _FACTORS),
    "baseline_reweight": (*[softmax_of(1, ROBUST, 0.05)] * 2, ONE),
    "finetune": (ONE, ONE, ONE),
}


def logits(x):
    return [sum(float(WEIGHT[k, d]) * x[d] for d in range(D)) + float(BIAS[k]) for k in range(K)]


def softmax(z):
    powers = [math.exp(value - max(z)) for value in z]
    return [p / sum(powers) for p in powers]


def by_loops(boundary, beta, weight_nat, weight_bndy, factor):
    """Return loss and its gradient in weight and bias; ``boundary``: "kl", "predicted" or "true" (label of x_adv)."""
    loss, by_weight, by_bias = 0.0, [[0.0] * D for _ in range(K)], [0.0] * K
    total_nat, total_bndy = (sum(w[label] for label in LABELS) for w in (weight_nat, weight_bndy))
    for n, label in enumerate(LABELS):
        x = IMAGES[n].tolist()
        x_adv = [x[d] + 8 / 255 * factor[label] * float(DIRECTION[n, d]) for d in range(D)]
        p, q = softmax(logits(x)), softmax(logits(x_adv))
        share_nat, share_bndy = weight_nat[label] / total_nat, beta * weight_bndy[label] / total_bndy
        loss -= share_nat * math.log(p[label])
        divergence = sum(p[k] * math.log(p[k] / q[k]) for k in range(K))
        target = p.index(max(p)) if boundary == "predicted" else label
        loss += share_bndy * (divergence if boundary == "kl" else -math.log(q[target]))
        for k in range(K):
            from_clean = share_nat * (p[k] - (k == label))
            if boundary == "kl":
                from_clean += share_bndy * p[k] * (math.log(p[k] / q[k]) - divergence)
                from_attacked = share_bndy * (q[k] - p[k])
            else:
                from_attacked = share_bndy * (q[k] - (k == target))
            by_bias[k] += from_clean + from_attacked
            for d in range(D):
                by_weight[k][d] += from_clean * x[d] + from_attacked * x_adv[d]
    return loss, by_weight, by_bias


# --- the project ----------------------------------------------------------------------------------------------------


def by_project(config, radius, weights, *, is_joint):
    weight, bias = WEIGHT.clone().requires_grad_(), BIAS.clone().requires_grad_()
    objective = build.objective(config, seeds=[0], epochs=[0], device=torch.device("cpu"), is_joint=is_joint)
    _, loss = step_loss(
        objective, IMAGES.clone(), torch.tensor(LABELS), forward=lambda x: x @ weight.T + bias, attack=shifted,
        radius=radius, weights=weights,
    )  # fmt: skip
    loss.backward()
    return float(loss.detach()), weight.grad, bias.grad


def policy_terms(config, updates):
    policy = new_policy(config.frl.name, Rules.of_runs([config], device=torch.device("cpu")), shape=(1, K))
    count = torch.tensor(COUNT)
    errors = ClassErrors(
        count=count,
        num_natural_errors=(torch.tensor(NATURAL, dtype=torch.float64) * count).round().long(),
        num_boundary_errors=(torch.tensor(BOUNDARY, dtype=torch.float64) * count).round().long(),
    )
    for _ in range(updates):
        policy.update(errors)
    return policy.margin_factor()[0], Weights(policy.weight_nat()[0], policy.weight_bndy()[0])


def agree(found, expected):
    loss, by_weight, by_bias = expected
    assert found[0] == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(found[1], torch.tensor(by_weight, dtype=torch.float64), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found[2], torch.tensor(by_bias, dtype=torch.float64), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("is_joint", [True, False])
@pytest.mark.parametrize("beta", [1.0, 6.0])
def test_trades_is_its_formula(beta, is_joint):
    config = parse(composed(attack="trades", attack__beta=beta, attack__fraction=1), RunConfig)
    assert config.method == "trades"
    agree(by_project(config, None, None, is_joint=is_joint), by_loops("kl", beta, ONE, ONE, ONE))


@pytest.mark.parametrize("is_joint", [True, False])
@pytest.mark.parametrize("frl", PAPER)
def test_the_papers_losses_are_their_formulas(frl, is_joint):
    config = parse(composed(frl=frl, recipe="paper"), RunConfig)
    agree(by_project(config, *policy_terms(config, TWICE), is_joint=is_joint), by_loops("kl", 1.5, *PAPER[frl]))


@pytest.mark.parametrize("is_joint", [True, False])
@pytest.mark.parametrize("frl", REPORT)
def test_the_reports_losses_are_their_formulas(frl, is_joint):
    config = parse(composed(frl=frl, recipe="report"), RunConfig)
    boundary = "true" if frl == "remargin" else "predicted"
    agree(by_project(config, *policy_terms(config, TWICE), is_joint=is_joint), by_loops(boundary, 1.0, *REPORT[frl]))


def test_the_cases_tell_the_methods_apart():
    """The comparison is worth something: every method moves something, and no two losses agree."""
    losses = [by_loops("kl", 1.5, *terms)[0] for terms in PAPER.values()]
    losses += [by_loops("true" if frl == "remargin" else "predicted", 1.0, *t)[0] for frl, t in REPORT.items()]
    assert len({round(loss, 9) for loss in losses}) == len(losses)
    assert all(max(PAPER[frl][0]) > min(PAPER[frl][0]) for frl in PAPER if frl != "finetune")

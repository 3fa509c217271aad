"""Class policies: every formula of the report and the paper against values worked out by hand; their symmetries."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frl_repro.basics.errors import UserError
from frl_repro.evaluation.class_errors import ClassErrors
from frl_repro.training import objectives, report_code
from frl_repro.training.frl import ClassPolicy, Rules, Weights, method_class, parts
from support import POLICIES, new_policy, step_loss


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def errors(natural, boundary, count=1000):
    """Class errors of equally large classes, rates given."""
    K = len(natural)
    return ClassErrors(
        count=torch.full((K,), count),
        num_natural_errors=torch.tensor([round(rate * count) for rate in natural]),
        num_boundary_errors=torch.tensor([round(rate * count) for rate in boundary]),
    )


SHIRT = errors([0.4, 0.1, 0.1], [0.5, 0.2, 0.2])  # overall: 0.2 and 0.3
REPORT = Rules(alpha={"nat": 5, "bndy": 1}, tau={"nat": 0.05, "bndy": 0.05})


def test_violation_is_gap_minus_tau():
    torch.testing.assert_close(parts.violation(tensor(0.4, 0.1, 0.1), 0.2, 0.05), tensor(0.15, -0.15, -0.15))


def test_reports_weights_are_a_softmax_of_one_plus_alpha_times_violation():
    policy = new_policy("reweight", REPORT, shape=(3,))
    policy.update(SHIRT)
    phi = [1 + 5 * 0.15, 1 - 5 * 0.15, 1 - 5 * 0.15]
    total = sum(math.exp(p) for p in phi)
    torch.testing.assert_close(policy.weight_nat(), tensor(*(3 * math.exp(p) / total for p in phi)))
    phi = [1 + 0.15, 1 - 0.15, 1 - 0.15]
    total = sum(math.exp(p) for p in phi)
    torch.testing.assert_close(policy.weight_bndy(), tensor(*(3 * math.exp(p) / total for p in phi)))
    assert torch.equal(policy.margin_factor(), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(("accumulate", "expected"), [(False, 0.75), (True, 1.5)])
def test_multipliers_restart_in_the_report_and_accumulate_in_the_paper(accumulate, expected):
    policy = new_policy("reweight", dataclasses.replace(REPORT, accumulate=accumulate), shape=(3,))
    policy.update(SHIRT)
    policy.update(SHIRT)
    assert policy.state["nat"][0] == pytest.approx(expected)


def test_papers_multipliers_are_clamped_and_rescaled_to_a_sum_of_one_half():
    torch.testing.assert_close(parts.project_multiplier(tensor(-1.0, 0.1, 0.2)), tensor(0.0, 0.1, 0.2))
    torch.testing.assert_close(parts.project_multiplier(tensor(-1.0, 0.6, 0.4)), tensor(0.0, 0.3, 0.2))


def test_papers_weights_are_a_share_of_the_simplex():
    # w(c) = 1/K + lambda(c) - (1/K) sum lambda, times K for a mean of 1.
    expected = [3 * (1 / 3 + value - 0.4 / 3) for value in (0.0, 0.1, 0.3)]
    torch.testing.assert_close(parts.simplex_weights(tensor(0.0, 0.1, 0.3)), tensor(*expected))


def test_papers_reweight_is_dual_ascent_with_simplex_weights():
    rules = Rules(
        alpha={"nat": 0.05, "bndy": 0.1}, tau={"nat": 0.1, "bndy": 0.1}, accumulate=True, weight_rule="simplex"
    )
    policy = new_policy("reweight", rules, shape=(3,))
    policy.update(SHIRT)
    policy.update(SHIRT)
    torch.testing.assert_close(policy.state["nat"], tensor(2 * 0.05 * 0.1, 0.0, 0.0))
    torch.testing.assert_close(policy.state["bndy"], tensor(2 * 0.1 * 0.1, 0.0, 0.0))
    torch.testing.assert_close(policy.weight_nat(), tensor(1 + 3 * 0.01 * 2 / 3, 1 - 0.01, 1 - 0.01))


def test_papers_margins_are_exp_two_lambda_within_bounds():
    rules = Rules(
        alpha={"margin": 0.4, "nat": 0.05},  # twice the paper's step of 0.2: its margin is exp(2 lambda)
        tau={"nat": 0.07, "bndy": 0.07},
        accumulate=True,
        weight_rule="simplex",
        margin_bounds=(0.98, 2.5),
    )
    policy = new_policy("remargin", rules, shape=(3,))
    policy.update(SHIRT)
    assert policy.margin_factor()[0] == pytest.approx(math.exp(2 * 0.2 * (0.5 - 0.3 - 0.07)))
    assert policy.margin_factor()[1] == 0.98
    for _ in range(50):
        policy.update(SHIRT)
    assert policy.margin_factor()[0] == 2.5
    assert policy.weight_nat()[0] > 1  # its "remargin" alone still reweights the natural loss


def test_reports_published_margins_are_neither_centred_nor_bounded():
    rules = Rules(alpha={"margin": 10}, tau={"bndy": 0.05}, margin_centred=False)
    policy = new_policy("remargin", rules, shape=(3,))
    policy.update(errors([0, 0, 0], [0.4, 0.05, 0.0]))
    # eps = 8/255 exp(10 (0.4 - 0.05)): about 1, the whole range of a pixel.
    torch.testing.assert_close(8 / 255 * policy.margin_factor()[0], tensor(8 / 255 * math.exp(3.5))[0])
    assert 8 / 255 * policy.margin_factor()[0] > 1
    torch.testing.assert_close(policy.margin_factor()[1:], tensor(1.0, math.exp(-0.5)))


def test_combined_is_both():
    rules = dataclasses.replace(REPORT, alpha={"nat": 5, "bndy": 1, "margin": 2})
    combined, reweight = new_policy("combined", rules, shape=(3,)), new_policy("reweight", REPORT, shape=(3,))
    combined.update(SHIRT)
    reweight.update(SHIRT)
    assert torch.equal(combined.weight_nat(), reweight.weight_nat())
    assert torch.equal(combined.weight_bndy(), reweight.weight_bndy())
    torch.testing.assert_close(combined.margin_factor(), tensor(0.3, -0.3, -0.3).exp())


def test_the_baseline_raises_the_class_of_the_largest_robust_error_and_knows_no_other_error():
    rules = Rules(alpha={"rob": 0.05}, tau={"rob": 0.1}, accumulate=True, weight_rule="simplex")
    policy = new_policy("baseline_reweight", rules, shape=(3,))
    policy.update(SHIRT)  # robust errors 0.9, 0.3, 0.3; overall 0.5
    torch.testing.assert_close(policy.state["rob"], tensor(0.05 * (0.9 - 0.5 - 0.1), 0.0, 0.0))
    assert torch.equal(policy.weight_nat(), policy.weight_bndy())
    assert policy.weight_nat().argmax() == 0
    other = new_policy("baseline_reweight", rules, shape=(3,))
    other.update(errors([0.7, 0.0, 0.3], [0.2, 0.3, 0.0]))  # the same robust errors, another split
    torch.testing.assert_close(other.weight_nat(), policy.weight_nat())
    with pytest.raises(UserError, match=r"baseline_reweight needs alpha\.rob"):
        new_policy("baseline_reweight", Rules(), shape=(3,))


def test_the_control_learns_nothing():
    policy = new_policy("finetune", Rules(), shape=(3,))
    policy.update(SHIRT)
    for answer in (policy.weight_nat(), policy.weight_bndy(), policy.margin_factor()):
        assert torch.equal(answer, torch.ones(3, dtype=torch.float64))


def test_alphas_that_are_missing_or_ignored_are_refused():
    with pytest.raises(UserError, match=r"reweight needs alpha\.bndy"):
        new_policy("reweight", Rules(alpha={"nat": 1}), shape=(3,))
    with pytest.raises(UserError, match=r"alpha\.margin has no effect with reweight"):
        new_policy("reweight", Rules(alpha={"nat": 1, "bndy": 1, "margin": 1}), shape=(3,))
    with pytest.raises(UserError, match=r"unknown method 'fair': there is no file fair\.py"):
        method_class("fair")


RATES = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=17)
SETTINGS = st.builds(
    Rules,
    alpha=st.just({"nat": 2.0, "bndy": 1.0, "margin": 1.0, "rob": 1.5}),
    tau=st.just({"nat": 0.05, "bndy": 0.05, "rob": 0.05}),
    accumulate=st.booleans(),
    weight_rule=st.sampled_from(["softmax", "simplex"]),
    margin_centred=st.booleans(),
    margin_bounds=st.just((0.5, 2.0)),
)


def every_policy(rules: Rules, num_classes: int) -> list[ClassPolicy]:
    made = []
    for name, policy in POLICIES.items():
        alpha = {key: value for key, value in rules.alpha.items() if key in policy.required}
        made.append(new_policy(name, dataclasses.replace(rules, alpha=alpha), shape=(num_classes,)))
    return made


def answers(policy: ClassPolicy) -> torch.Tensor:
    return torch.stack([policy.weight_nat(), policy.weight_bndy(), policy.margin_factor()])


@given(RATES, SETTINGS, st.randoms(use_true_random=False))
def test_relabelling_classes_permutes_weights_and_margins(rates, rules, chance):
    order = list(range(len(rates)))
    chance.shuffle(order)
    for ours, other in zip(every_policy(rules, len(rates)), every_policy(rules, len(rates)), strict=True):
        for _ in range(2):
            ours.update(errors([a / 100 for a, _ in rates], [b / 100 for _, b in rates], 100))
            moved = [rates[i] for i in order]
            other.update(errors([a / 100 for a, _ in moved], [b / 100 for _, b in moved], 100))
        torch.testing.assert_close(answers(ours)[:, order], answers(other))


@given(st.integers(2, 17), st.integers(0, 50), st.integers(0, 50), SETTINGS)
def test_equal_class_errors_give_uniform_weights_and_one_margin(num_classes, natural, boundary, rules):
    for policy in every_policy(rules, num_classes):
        policy.update(errors([natural / 100] * num_classes, [boundary / 100] * num_classes, 100))
        weights = answers(policy)
        torch.testing.assert_close(weights[:2], torch.ones_like(weights[:2]))
        torch.testing.assert_close(weights[2], weights[2, :1].expand(num_classes))


@given(RATES, SETTINGS)
def test_weights_are_positive_with_mean_one_and_margins_stay_in_their_bounds(rates, rules):
    for policy in every_policy(rules, len(rates)):
        for _ in range(3):
            policy.update(errors([a / 100 for a, _ in rates], [b / 100 for _, b in rates], 100))
        weights = answers(policy)
        assert (weights[:2] > 0).all()
        torch.testing.assert_close(weights[:2].mean(1), tensor(1.0, 1.0))
        assert ((weights[2] >= 0.5) & (weights[2] <= 2.0)).all()


# ---------------------------------------------------------------------------------------------------------------
# Objectives: against a loop over samples, and against what they say of the published code


def test_weights_too_small_for_numbers_keep_their_ratios_in_a_batch():
    """alpha.nat=1000: a batch without the class that has all the weight would divide 0 by 0."""
    rules = Rules(alpha={"nat": 1000.0, "bndy": 0.0}, tau={"nat": 0.0, "bndy": 0.0})
    policy = new_policy("reweight", rules, shape=(4,))
    policy.update(errors([0.9, 0.001, 0.0, 0.0005], [0.1] * 4, 10_000))
    answer = policy.weigh(None)
    terms = answer._replace(nat=answer.nat.float(), bndy=answer.bndy.float())
    assert terms.nat.tolist() == [4, 0, 0, 0]
    y, losses = torch.tensor([1, 2, 3, 2]), torch.tensor([2.0, 3.0, 5.0, 7.0], requires_grad=True)
    weights = [math.exp(1000 * error) for error in (0.001, 0.0, 0.0005, 0.0)]
    expected = [weight / sum(weights) for weight in weights]
    mean = objectives.weighted_mean(losses, terms, "nat", y)
    mean.backward()
    assert mean.item() == pytest.approx(sum(w * loss for w, loss in zip(expected, [2, 3, 5, 7], strict=True)), rel=1e-5)
    assert losses.grad.tolist() == pytest.approx(expected, rel=1e-5)
    assert objectives.weighted_mean(losses, terms, "bndy", y).item() == 17 / 4
    with_the_class = torch.tensor([1, 0, 3, 2])
    assert objectives.weighted_mean(losses, terms, "nat", with_the_class).item() == 3


@given(RATES, SETTINGS)
def test_logarithms_of_weights_are_those_of_the_weights(rates, rules):
    for policy in every_policy(rules, len(rates)):
        policy.update(errors([a / 100 for a, _ in rates], [b / 100 for _, b in rates], 100))
        torch.testing.assert_close(policy.log_weight_nat().exp(), policy.weight_nat())
        torch.testing.assert_close(policy.log_weight_bndy().exp(), policy.weight_bndy())


def test_usual_weights_change_no_bit_of_a_mean():
    generator = torch.Generator().manual_seed(0)
    weights, losses = torch.rand(2, 5, 64, generator=generator) + 1e-6
    y = torch.arange(64).expand(5, 64)  # a class a sample
    mean = objectives.weighted_mean(losses, Weights(weights, weights), "nat", y)
    assert torch.equal(mean, (losses * weights).sum(-1) / weights.sum(-1))


X, Y = torch.linspace(0, 1, 6).view(6, 1), torch.tensor([0, 1, 2, 2, 1, 0])
WEIGHT = torch.tensor([[2.0, -1.0, 0.5]])
TERMS = Weights(nat=torch.tensor([0.5, 1.0, 1.5]), bndy=torch.tensor([1.2, 0.8, 1.0]))
FACTORS = torch.tensor([1.0, 2.0, 3.0])


def forward(x):
    return x @ WEIGHT


def shift(x, y, *, factor):
    return x + 0.1 * (torch.ones_like(x) if factor is None else factor.unsqueeze(-1))


def cross_entropy(logits, label):
    return float(torch.logsumexp(logits, 0) - logits[label])


@pytest.mark.parametrize("terms", [None, TERMS])
@pytest.mark.parametrize("name", ["mixed", "split", "paired", "trades"])
def test_objectives_equal_a_loop_over_samples(name, terms):
    natural, boundary, weights_nat, weights_bndy = [], [], [], []
    for n in range(6):
        label = int(Y[n])
        factor = 1.0 if terms is None else float(FACTORS[label])
        clean, attacked = forward(X[n]), forward(X[n] + 0.1 * factor)
        clean, attacked = clean.view(-1), attacked.view(-1)
        weights_nat.append(1.0 if terms is None else float(terms.nat[label]))
        weights_bndy.append(1.0 if terms is None else float(terms.bndy[label]))
        natural.append(cross_entropy(clean, label))
        if name == "split":
            boundary.append(cross_entropy(attacked, int(clean.argmax())))
        elif name == "trades":
            p, q = torch.softmax(clean, 0), torch.softmax(attacked, 0)
            boundary.append(float((p * (p / q).log()).sum()))
        else:
            boundary.append(cross_entropy(attacked, label))
    if name == "mixed":
        first, rest = range(3), range(3, 6)
        expected = sum(boundary[n] * weights_bndy[n] for n in first) + sum(natural[n] * weights_nat[n] for n in rest)
        objective = objectives.Mixed(0.5)
        expected /= 6
    else:
        beta = 1.5 if name == "trades" else 1.0
        expected = sum(w * v for w, v in zip(weights_nat, natural, strict=True)) / sum(weights_nat)
        expected += beta * sum(w * v for w, v in zip(weights_bndy, boundary, strict=True)) / sum(weights_bndy)
        objective = {
            "split": objectives.SplitLoss(),
            "paired": objectives.Paired(),
            "trades": objectives.Trades(beta=1.5),
        }[name]
    radius = None if terms is None else FACTORS
    _, loss = step_loss(objective, X.clone(), Y, forward=forward, attack=shift, radius=radius, weights=terms)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_scrambled_labels_score_shuffled_images_against_labels_in_their_old_order():
    generator = torch.Generator().manual_seed(5)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(5))
    assert not torch.equal(Y[order], Y)
    scrambled = report_code.ScrambledPaired(generators=[generator])
    _, found = step_loss(scrambled, X[None], Y[None], forward=forward, attack=shift)
    _, right = step_loss(objectives.Paired(), X, Y, forward=forward, attack=shift)
    clean = sum(cross_entropy(forward(X[n]).view(-1), int(Y[n])) for n in range(6)) / 6
    wrong = sum(cross_entropy(forward(X[order[n]] + 0.1).view(-1), int(Y[n])) for n in range(6)) / 6
    assert float(found) == pytest.approx(clean + wrong, rel=1e-5)
    assert float(found) != pytest.approx(float(right), rel=1e-3)


def test_published_boundary_weights_go_by_the_predicted_class():
    by_predicted = report_code.SplitByPrediction()
    _, found = step_loss(by_predicted, X, Y, forward=forward, attack=shift, radius=FACTORS, weights=TERMS)
    predicted = [int(forward(X[n]).argmax()) for n in range(6)]
    natural = [cross_entropy(forward(X[n]).view(-1), int(Y[n])) for n in range(6)]
    boundary = [cross_entropy(forward(X[n] + 0.1 * FACTORS[Y[n]]).view(-1), predicted[n]) for n in range(6)]
    by_label, by_prediction = [TERMS.nat[y] for y in Y], [TERMS.bndy[p] for p in predicted]
    expected = sum(w * v for w, v in zip(by_label, natural, strict=True)) / sum(by_label)
    expected += sum(w * v for w, v in zip(by_prediction, boundary, strict=True)) / sum(by_prediction)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


class _Threshold(torch.nn.Module):
    """Class 1 above one half, class 0 below."""

    def forward(self, x):
        return torch.cat([0.5 - x.flatten(1), x.flatten(1) - 0.5], dim=1)


def test_published_errors_count_flips_of_wrong_samples_and_shrink_the_overall_error():
    from frl_repro.data import Split

    split = Split(
        images=torch.tensor([51, 102, 204, 153], dtype=torch.uint8).view(4, 1, 1, 1), labels=torch.tensor([0, 1, 1, 0])
    )
    arguments = {
        "attack": lambda _, x, __, **___: 1 - x,  # flips every prediction
        "epsilon": 0.1,
        "logits": lambda model, x: model(x),
        "num_classes": 2,
        "generator": torch.Generator(),
        "device": torch.device("cpu"),
    }
    measured = report_code.measure_published(
        _Threshold(), split, **arguments, flipped_boundary=True, overall_over_22=True
    )
    # Sample 1 (class 1, below one half) and 3 (class 0, above) are wrong when clean; all four flip.
    assert measured.class_natural_error.tolist() == [0.5, 0.5]
    assert measured.class_boundary_error.tolist() == [1.0, 1.0]
    assert measured.overall_natural_error == pytest.approx(0.5 * 21 / 22)
    right = report_code.measure_published(
        _Threshold(), split, **arguments, flipped_boundary=False, overall_over_22=False
    )
    assert right.class_boundary_error.tolist() == [0.5, 0.5]
    assert right.overall_boundary_error == 0.5

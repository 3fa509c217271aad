"""CFA: radius and boundary weight by robust accuracy, and the average of fair epochs, against loops in float64."""

import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from frl_repro.basics.errors import UserError
from frl_repro.runs import experiment
from frl_repro.settings.config import RunConfig
from frl_repro.settings.parse import parse
from frl_repro.training import fitting, objectives
from frl_repro.training.frl import When
from frl_repro.training.frl.cfa import Cfa, Settings
from frl_repro.training.steering import RunErrors
from support import composed, step_loss, tiny_retraining

BETA = 6.0


def cfa(*, objective="trades", share=BETA / (1 + BETA), num_classes=3, **settings):
    method = Cfa(num_runs=1, num_classes=num_classes)
    values = {"radius_offset": 0.3, "beta_offset": 0.5, "start_epoch": 1, "average_start": 1, "average_above": 0.2}
    method.configure([Settings(name="cfa", **values | settings)])
    method.state = method.start()
    method.objective, method.attacked_share = objective, share
    return method


def when(epoch):
    return When(torch.tensor([epoch]), torch.tensor([10]), 0, 5)


def stats_with(num, wrong):
    """Class sums of which only the outcomes of attacked images count."""
    outcomes = {"num_attacked": num, "wrong_attacked": wrong}
    return SimpleNamespace(**{k: torch.tensor([v], dtype=torch.float64) for k, v in outcomes.items()})


def test_radius_and_beta_are_offset_plus_robust_accuracy_and_the_loss_is_the_papers():
    method = cfa()
    method.see_epoch(stats_with([10, 20, 5], [9, 4, 0]), when(0))
    t = [0.1, 0.8, 1.0]
    plan = method.plan(when(1))
    assert plan.radius[0].tolist() == pytest.approx([0.3 + a for a in t])
    assert not plan.is_step_scaled
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 3, generator=generator), torch.tensor([0, 1, 2, 2, 1, 0, 1])
    weights = method.weigh(when(1))
    of_one = weights._replace(nat=weights.nat[0].float(), bndy=weights.bndy[0].float())

    def negated(x, y, *, factor):
        assert factor is None
        return -x

    settings = {"forward": lambda x: 2 * x, "attack": negated, "weights": of_one, "scale": "images"}
    _, found = step_loss(objectives.Trades(beta=BETA), x, y, **settings)
    total = 0.0
    for n in range(7):
        p, q = (torch.softmax(sign * 2 * x[n].double(), 0) for sign in (1, -1))
        beta = (0.5 + t[y[n]]) * BETA
        divergence = sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True))
        total += (-math.log(float(p[y[n]])) + beta * divergence) / (1 + beta)
    assert float(found) == pytest.approx(total / 7, rel=1e-5)


@pytest.mark.parametrize(("objective", "share", "of_plain"), [
    ("trades", BETA / (1 + BETA), 1 / (1 + BETA)), ("split", 0.5, 0.5), ("paired", 0.5, 0.5), ("mixed", 0.3, 1.0),
])  # fmt: skip
def test_equal_classes_give_the_plain_loss_divided_by_one_plus_beta(objective, share, of_plain):
    method = cfa(objective=objective, share=share)
    for _ in range(2):  # before the first epoch; and with half of each class right
        weights = method.weigh(when(0))
        for found in (weights.nat, weights.bndy):
            assert found[0].tolist() == pytest.approx([of_plain] * 3)
        method.see_epoch(stats_with([10, 10, 10], [5, 5, 5]), when(0))


def test_in_a_mixed_batch_the_mean_over_clean_and_attacked_images_has_the_classs_beta():
    method = cfa(objective="mixed", share=0.25)
    method.see_epoch(stats_with([4, 4, 4], [4, 2, 0]), when(0))
    weights = method.weigh(when(1))
    for c, t in enumerate([0.0, 0.5, 1.0]):
        beta = (0.5 + t) * 0.25 / 0.75
        assert 0.75 * float(weights.nat[0, c]) == pytest.approx(1 / (1 + beta))
        assert 0.25 * float(weights.bndy[0, c]) == pytest.approx(beta / (1 + beta))
    alone = cfa(objective="mixed", share=1.0, beta_offset=0.0)
    alone.see_epoch(stats_with([4, 4, 4], [4, 2, 0]), when(0))
    assert alone.weigh(when(1)).bndy[0].tolist() == pytest.approx([1, 1, 1])  # only radii differ


def test_relabelling_permutes_and_absent_classes_and_early_epochs_stay():
    order, num, wrong = [2, 0, 1], [10, 20, 5], [9, 4, 1]
    one, other = cfa(start_epoch=2), cfa(start_epoch=2)
    one.see_epoch(stats_with(num, wrong), when(0))
    assert torch.equal(one.plan(when(1)).radius, one.ones())
    one.see_epoch(stats_with(num, wrong), when(1))
    other.see_epoch(stats_with([num[i] for i in order], [wrong[i] for i in order]), when(1))
    for name, state in one.state.items():
        torch.testing.assert_close(state[:, order], other.state[name])
    before = one.state["radius"].clone()
    one.see_epoch(stats_with([10, 0, 10], [1, 0, 1]), when(2))
    assert one.state["radius"][0, 1] == before[0, 1]
    assert one.state["radius"][0, 0] == pytest.approx(0.3 + 0.9)


def errors_of(*robust):
    """Error rates of runs with these robust errors by class, half of them natural."""
    half = torch.tensor(robust, dtype=torch.float64) / 2
    return RunErrors(half, half, half.mean(-1), half.mean(-1))


def test_the_average_takes_in_epochs_whose_worst_class_is_robust_enough():
    method = cfa(average_start=2)
    seen = errors_of([0.1, 0.8, 0.5], [0.1, 0.81, 0.0])
    assert method.accepts(seen, when(1)).tolist() == [False, False]  # the second epoch: too early
    assert method.accepts(seen, when(2)).tolist() == [True, False]
    assert method.accepts(errors_of([0.0, 0.0, 0.79]), when(2)).tolist() == [True]


def test_in_a_run_the_average_is_that_of_the_accepted_epochs(tmp_path, monkeypatch):
    seen, answers = [], iter([False, True, True])

    def accepts(self, errors, when):
        training = under_way[0]
        is_accepted = next(answers)
        if is_accepted:
            seen.append({name: tensor.clone() for name, tensor in training.model.state_dict().items()})
        assert errors.class_natural_error.shape == (1, 3)
        return torch.tensor([is_accepted])

    under_way, start = [], fitting._Training.__init__

    def noting(self, *arguments):
        start(self, *arguments)
        under_way.append(self)

    monkeypatch.setattr(Cfa, "accepts", accepts)
    config = tiny_retraining(tmp_path, "finetune").base()
    values = {
        "dataset": "synthetic", "dataset__num_classes": 3, "dataset__num_train": 120, "dataset__num_test": 45,
        "dataset__validation_fraction": 0.25, "trainer__batch_size": 30, "attack__num_steps": 2,
        "evaluation__num_steps": 2, "backend": "torch", "frl": "cfa", "recipe": "scratch", "trainer__num_epochs": 3,
        "output_dir": str(tmp_path),
    }  # fmt: skip
    monkeypatch.setattr(fitting._Training, "__init__", noting)
    experiment.run(parse(composed(**values), RunConfig))
    assert config.frl.name == "none"
    assert len(seen) == 2
    for name, tensor in under_way[0].measured.state_dict().items():
        torch.testing.assert_close(tensor, 0.85 * seen[0][name] + 0.15 * seen[1][name])


def test_on_a_line_the_average_of_fair_epochs_has_the_smaller_worst_error():
    """Two classes and a threshold that each epoch moves somewhere else: unfair epochs are left out."""
    generator = torch.Generator().manual_seed(0)
    x = torch.stack([torch.randn(2000, generator=generator) - 1, torch.randn(2000, generator=generator) + 1]).double()

    def errors(threshold):
        return [float((x[0] > threshold).double().mean()), float((x[1] < threshold).double().mean())]

    method, average, plain = cfa(average_above=0.75), None, None
    thresholds = [0.2, -0.9, 0.25, -0.2, 1.1, 0.1, -0.3, 1.4]
    for epoch, threshold in enumerate(thresholds, start=1):
        plain = threshold if plain is None else 0.85 * plain + 0.15 * threshold
        if method.accepts(errors_of(errors(threshold)), when(epoch)):
            average = threshold if average is None else 0.85 * average + 0.15 * threshold
    assert max(errors(thresholds[-1])) > 0.6
    assert max(errors(average)) < max(errors(plain)) < max(errors(thresholds[-1]))
    assert max(errors(average)) < 0.21


def test_the_average_needs_validation_images():
    with pytest.raises(UserError, match=r"validation_fraction must not be 0, or trainer\.ema_decay=null"):
        parse(composed(frl="cfa", recipe="scratch", dataset__validation_fraction=0), RunConfig)
    kept = {"frl": "cfa", "recipe": "scratch", "trainer__ema_decay": None, "dataset__validation_fraction": 0}
    assert parse(composed(**kept), RunConfig).frl.name == "cfa"


@pytest.mark.parametrize("from_start", [False, True])
def test_an_average_of_steps_begins_with_the_base_or_with_the_first_step(from_start, tmp_path, monkeypatch):
    """The control EMA with base: steps are recorded and averaged again in float64."""
    after, step = [], fitting._Training.step

    def noting(self, *arguments, **settings):
        if self.run.config.frl.name == "finetune":
            if not after:
                after.append({name: tensor.double() for name, tensor in self.model.state_dict().items()})
            step(self, *arguments, **settings)
            after.append({name: tensor.double() for name, tensor in self.model.state_dict().items()})
        else:
            step(self, *arguments, **settings)

    monkeypatch.setattr(fitting._Training, "step", noting)
    average = {"retrain__trainer__ema_decay": 0.8, "retrain__trainer__ema_from_start": from_start}
    folder = experiment.run(tiny_retraining(tmp_path, "finetune", **average))
    assert len(after) == 2 * 3 + 1
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        expected, *later = [one[name] for one in after[0 if from_start else 1 :]]
        for one in later:
            expected = 0.8 * expected + 0.2 * one
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_start_of_an_average_that_is_not_there_is_refused_and_names_another_run():
    with pytest.raises(UserError, match=r"trainer\.ema_from_start has no effect with trainer\.ema_decay=null"):
        parse(composed(trainer__ema_from_start=True), RunConfig)
    plain = composed(trainer__ema_decay=0.9)
    ours = parse(plain, RunConfig)
    with_base = parse(composed(trainer__ema_decay=0.9, trainer__ema_from_start=True), RunConfig)
    assert ours.hash != with_base.hash

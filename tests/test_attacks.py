"""PGD and FGSM: closed form on a linear model, bit parity with foolbox, bounds, and no trace left behind."""

import foolbox
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from frl_repro.attacks import fgsm, input_gradient, pgd
from frl_repro.attacks.predictions import NO_CLASS, is_wrong, predicted_class
from frl_repro.basics.errors import UserError
from frl_repro.models import build_model

IMAGES = (8, 1, 32, 32)


def draw(seed=0, shape=IMAGES, num_classes=10):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator), torch.randint(num_classes, shape[:1], generator=generator)


def lenet(seed=0):
    return build_model("lenet5", num_classes=10, image_shape=(1, 32, 32), seed=seed)


def linear_model(weight):
    model = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    with torch.no_grad():
        model[1].weight.copy_(weight)
    return model


def test_on_a_linear_model_pgd_moves_every_pixel_to_the_edge_of_the_ball():
    # Two classes, logits (w.x, -w.x): the loss of class 0 grows along -sign(w), whatever x is.
    w = torch.tensor([1.0, -2.0, 0.5, -0.1])
    model = linear_model(torch.stack([w, -w]))
    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    x_adv = pgd(model, x, y, epsilon=0.1, step_size=0.03, num_steps=10, use_random_start=False)
    torch.testing.assert_close(x_adv, x - 0.1 * w.sign().view(1, 1, 2, 2))
    torch.testing.assert_close(fgsm(model, x, y, epsilon=0.1), x_adv)


@pytest.mark.parametrize("settings", [{"objective": "kl"}, {"num_restarts": 2}], ids=["kl", "restarts"])
def test_the_backend_answers_whatever_the_attack_asks_of_the_model(settings):
    """PyTorch's answers among native ones would differ for fused runs, and know no limit of memory."""
    asked = []

    def never(_):
        raise AssertionError("the model itself was asked")

    def logits(_, x):
        asked.append(x)
        return x.flatten(1)[:, :10]

    def ascend(_, ascent):
        if "objective" in settings:
            torch.testing.assert_close(ascent.target, torch.softmax(ascent.x.flatten(1)[:, :10], 1))
        return ascent.start

    model = nn.Module()
    model.forward = never
    x, y = draw()
    generator = torch.Generator().manual_seed(0)
    budget = {"epsilon": 0.1, "step_size": 0.1, "num_steps": 1, "generator": generator}
    pgd(model, x, y, **budget, **settings, ascend=ascend, logits=logits)
    assert len(asked) == settings.get("num_restarts", 1)


@pytest.mark.parametrize("num_steps", [1, 5, 20])
def test_without_random_start_pgd_gives_the_bits_of_foolbox(num_steps):
    model, (x, y) = lenet().eval(), draw()
    attack = foolbox.attacks.LinfPGD(abs_stepsize=2 / 255, steps=num_steps, random_start=False)
    expected, _, _ = attack(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=8 / 255)
    ours = pgd(model, x, y, epsilon=8 / 255, step_size=2 / 255, num_steps=num_steps, use_random_start=False)
    # foolbox returns clean images it finds already misclassified as attacked ones; the iterates are the same.
    assert torch.equal(ours, expected)


def test_fgsm_gives_the_bits_of_foolbox():
    model, (x, y) = lenet().eval(), draw()
    expected, _, _ = foolbox.attacks.FGSM()(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=0.1)
    assert torch.equal(fgsm(model, x, y, epsilon=0.1), expected)


@given(
    seed=st.integers(0, 10**6),
    epsilon=st.floats(0, 0.5),
    step_size=st.floats(0, 1),
    num_steps=st.integers(1, 4),
    objective=st.sampled_from(["cross_entropy", "kl"]),
    early_stop=st.booleans(),
    num_restarts=st.integers(1, 2),
)
def test_every_sample_stays_in_its_own_ball_and_in_the_image_range(
    seed, epsilon, step_size, num_steps, objective, early_stop, num_restarts
):
    x, y = draw(seed, (5, 1, 2, 3), 4)
    model = linear_model(torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)))
    radius = epsilon * torch.arange(5) / 4  # from 0 to epsilon
    x_adv = pgd(
        model,
        x,
        y,
        epsilon=radius,
        step_size=step_size * radius,
        num_steps=num_steps,
        objective=objective,
        early_stop=early_stop,
        num_restarts=num_restarts,
        generator=torch.Generator().manual_seed(seed),
    )
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert ((x_adv - x).abs().amax(dim=(1, 2, 3)) <= radius + 1e-6).all()
    assert torch.equal(x_adv[0], x[0])  # radius 0 is the clean image


def test_one_epsilon_per_sample_equals_separate_attacks():
    model, (x, y) = lenet(), draw(shape=(4, 1, 32, 32))
    radii = torch.tensor([2, 4, 8, 16]) / 255
    together = pgd(model, x, y, epsilon=radii, step_size=radii / 4, num_steps=5, use_random_start=False)
    for i, radius in enumerate(radii.tolist()):
        alone = pgd(
            model, x[i : i + 1], y[i : i + 1], epsilon=radius, step_size=radius / 4, num_steps=5, use_random_start=False
        )
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-6, rtol=0)


def test_early_stop_keeps_the_first_misclassified_iterate():
    w = torch.tensor([1.0, 1.0])
    model = linear_model(torch.stack([w, -w]))
    x = torch.tensor([0.05, 0.9, -1.0]).clamp(0, 1).view(3, 1, 1, 1).expand(3, 1, 1, 2).clone()
    # logits (s, -s) with s = sum of pixels >= 0: class 0 is right until s reaches 0; ties go to class 0.
    y = torch.tensor([0, 0, 1])
    x_adv = pgd(model, x, y, epsilon=0.3, step_size=0.1, num_steps=5, use_random_start=False, early_stop=True)
    assert torch.equal(x_adv[2], x[2])  # misclassified when clean: left alone
    torch.testing.assert_close(x_adv[1], x[1] - 0.3)  # never falls: all steps are taken


def test_restarts_keep_the_strongest_result():
    model, (x, y) = lenet(), draw()

    def loss(num_restarts):
        generator = torch.Generator().manual_seed(3)
        x_adv = pgd(
            model, x, y, epsilon=0.1, step_size=0.05, num_steps=1, num_restarts=num_restarts, generator=generator
        )
        with torch.no_grad():
            logits = model(x_adv)
        return logits.argmax(1) != y, nn.functional.cross_entropy(logits, y, reduction="none")

    (wrong_one, loss_one), (wrong_many, loss_many) = loss(1), loss(5)
    assert (wrong_many | ~wrong_one).all()
    same = wrong_many == wrong_one
    assert (loss_many[same] >= loss_one[same]).all()
    assert (loss_many > loss_one).any()


def test_the_gradient_serves_labels_and_distributions():
    model, (x, y) = lenet(), draw()
    _, from_labels = input_gradient(model, x, y)
    _, from_distribution = input_gradient(model, x, nn.functional.one_hot(y, 10).float())
    torch.testing.assert_close(from_labels, from_distribution)
    clean = torch.softmax(model(x).detach(), 1)
    x_adv = (x + 0.05).requires_grad_(True)
    divergence = nn.functional.kl_div(torch.log_softmax(model(x_adv), 1), clean, reduction="sum")
    (expected,) = torch.autograd.grad(divergence, x_adv)
    _, gradient = input_gradient(model, x_adv, clean)
    torch.testing.assert_close(gradient, expected)


def test_kl_moves_predictions_away_from_the_clean_ones():
    model, (x, y) = lenet(), draw()
    clean = torch.softmax(model(x).detach(), 1)

    def divergence(z):
        with torch.no_grad():
            return nn.functional.kl_div(torch.log_softmax(model(z), 1), clean, reduction="sum")

    settings = {"epsilon": 0.2, "step_size": 0.05, "generator": torch.Generator().manual_seed(0)}
    assert divergence(pgd(model, x, y, num_steps=10, objective="kl", **settings)) > 2 * divergence(
        pgd(model, x, y, num_steps=1, objective="kl", **settings)
    )


class Stateful(nn.Module):
    """A model with everything an attack could disturb: batch-norm buffers, dropout, gradients, mixed modes."""

    def __init__(self):
        super().__init__()
        self.norm, self.dropout, self.linear = nn.BatchNorm2d(1), nn.Dropout(), nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(self.dropout(self.norm(x)).flatten(1))


@pytest.mark.parametrize("fails", [False, True])
def test_an_attack_leaves_no_trace(fails):
    model = Stateful().train()
    model.norm.eval()  # a mode of its own, as when batch-norm is frozen
    model.linear.weight.grad = torch.ones_like(model.linear.weight)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    x, y = draw(shape=(5, 1, 2, 2), num_classes=3)
    state = torch.get_rng_state()
    labels = torch.full_like(y, 99) if fails else y

    def attack():
        pgd(
            model,
            x,
            labels,
            epsilon=0.1,
            step_size=0.1,
            num_steps=2,
            num_restarts=2,
            generator=torch.Generator().manual_seed(0),
        )

    if fails:
        with pytest.raises(IndexError, match="out of bounds"):
            attack()
    else:
        attack()
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert model.linear.training
    assert not model.norm.training
    assert torch.equal(model.linear.weight.grad, torch.ones_like(model.linear.weight))
    assert model.linear.bias.grad is None
    assert not x.requires_grad
    for name, value in model.named_buffers():
        assert torch.equal(value, buffers[name])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": -0.1}, r"epsilon=-0.1 must lie in \[0, 1\]"),
        ({"epsilon": float("nan")}, "epsilon=nan must lie in"),
        ({"epsilon": torch.zeros(3)}, r"epsilon has shape \(3,\); give one number or one per sample \(8,\)"),
        ({"epsilon": 8}, r"epsilon=8 must lie in \[0, 1\], as pixels do: write 8/255 for eight grey levels of 255"),
        ({"epsilon": torch.tensor([0.1] * 7 + [8])}, r"epsilon=8 must lie in \[0, 1\]"),
        ({"epsilon": torch.tensor([0.1] * 7 + [float("nan")])}, "epsilon=nan must lie in"),
        ({"step_size": -1.0}, r"step_size=-1 must lie in \[0, 1\]"),
        ({"step_size": 2}, r"step_size=2 must lie in \[0, 1\]"),
        ({"num_steps": 0}, "num_steps=0 .* must be at least 1"),
        ({"objective": "hinge"}, "unknown objective 'hinge'; known: cross_entropy, kl"),
        ({"use_random_start": False, "num_restarts": 2}, "num_restarts > 1 needs random_start"),
        ({"use_random_start": False, "objective": "kl"}, "objective=kl needs random_start"),
        ({"generator": None}, "needs a generator"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    x, y = draw()
    given_settings = {"epsilon": 0.1, "step_size": 0.1, "num_steps": 1, "generator": torch.Generator(), **settings}
    with pytest.raises(ValueError, match=message):
        pgd(lenet(), x, y, **given_settings)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (lambda x: 255 * x, r"images must lie in \[0, 1\], got pixels from .* to 2.*: divide those of 0..255 by 255"),
        (lambda x: x - 0.5, r"images must lie in \[0, 1\], got pixels from -0"),
        (lambda x: x.where(x < x.max(), float("nan")), "got pixels from nan"),
        (lambda x: (255 * x).to(torch.uint8), r"images must be floats in \[0, 1\], got torch.uint8"),
    ],
    ids=["0..255", "centred", "nan", "uint8"],
)
def test_images_outside_the_unit_interval_are_refused(images, message):
    x, y = draw()
    model, generator = lenet(), torch.Generator()
    with pytest.raises(UserError, match=message):
        pgd(model, images(x), y, epsilon=0.1, step_size=0.1, num_steps=1, generator=generator)
    with pytest.raises(UserError, match=message):
        fgsm(model, images(x), y, epsilon=0.1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 1])
def test_logits_that_are_not_finite_are_wrong(value, place):
    logits = torch.tensor([[3.0, 1.0, 0.0], [1.0, 3e38, -3e38]])
    assert predicted_class(logits).tolist() == [0, 1]
    logits[0, place] = value
    assert predicted_class(logits).tolist() == [NO_CLASS, 1]
    for label in range(3):
        assert is_wrong(logits, torch.tensor([label, 1])).tolist() == [True, False]
    assert is_wrong(logits.expand(2, 2, 3), torch.tensor([[0, 1], [0, 0]])).tolist() == [[True, False], [True, True]]


class NotFiniteBeyond(nn.Module):
    """Right for label 0 below a mean pixel of 0.55, NaN above; the gradient leads up."""

    def forward(self, x):
        mean = x.mean((1, 2, 3))
        logits = torch.stack([-mean, mean - 2], 1)
        return torch.where((mean < 0.55).view(-1, 1), logits, float("nan"))


def test_early_stop_leaves_a_sample_whose_logits_are_not_finite():
    x, y = torch.full((3, 1, 4, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    settings = {"epsilon": 0.3, "step_size": 0.02, "num_steps": 9, "use_random_start": False}
    stopped = pgd(NotFiniteBeyond(), x, y, early_stop=True, **settings)
    torch.testing.assert_close(stopped, torch.full_like(x, 0.56))  # the third step is the first beyond 0.55


def test_of_several_restarts_one_that_is_not_finite_is_kept():
    """The first restart ends at finite logits and the second at NaN, or the other way round: both are wrong at last."""
    x, y = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, dtype=torch.int64)
    for order in ([0.5, 0.6], [0.6, 0.5]):
        ends = iter(order)

        def ascend(model, ascent, ends=ends):
            return torch.full_like(ascent.x, next(ends))

        generator = torch.Generator().manual_seed(0)
        settings = {"epsilon": 0.3, "step_size": 0.02, "num_steps": 1, "num_restarts": 2, "generator": generator}
        found = pgd(NotFiniteBeyond(), x, y, ascend=ascend, **settings)
        assert torch.equal(found, torch.full_like(x, 0.6))


def test_no_images_give_no_images():
    x, y = draw(shape=(0, 1, 32, 32))
    assert pgd(lenet(), x, y, epsilon=0.1, step_size=0.1, num_steps=1, generator=torch.Generator()).shape == x.shape

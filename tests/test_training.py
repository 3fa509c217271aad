"""The training loop, evaluation, checkpoints and random streams."""

import dataclasses
import functools
import math
import re

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import native_lenet5 as native
from frl_repro.attacks import pgd
from frl_repro.basics import streams
from frl_repro.basics.errors import UserError
from frl_repro.data import Split
from frl_repro.data.synthetic import load_synthetic
from frl_repro.evaluation.evaluate import evaluate
from frl_repro.models import LeNet5, build_model, checkpoints, origin
from frl_repro.models.compute.backends import TORCH, choose_backend
from frl_repro.models.compute.native import NativeUnavailable
from frl_repro.training import objectives, report_code
from frl_repro.training.trainer import Diverged, learning_rate_at, train_epoch
from support import step_loss

CPU = torch.device("cpu")


def lenet(seed=0, num_classes=3):
    return build_model("lenet5", num_classes=num_classes, image_shape=(1, 32, 32), seed=seed)


@pytest.fixture(scope="module")
def images():
    train, test = load_synthetic(num_classes=3, num_train=120, num_test=60, seed=0)
    return train, test


def with_factor(attack):
    """The attack as training calls it; no policy, so no class margins."""

    def run(model, x, y, *, factor, generator):
        assert factor is None
        return attack(model, x, y, generator=generator)

    return run


def epoch(
    model,
    train,
    *,
    attack=None,
    fraction=0.0,
    batch_size=30,
    learning_rate=1e-3,
    average=None,
    backend=TORCH,
):
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)

    def update():
        optimizer.step()
        if average is not None:
            average.update_parameters(model)

    (summary,) = train_epoch(
        model,
        train,
        update=update,
        objective=objectives.Mixed(0) if attack is None else objectives.Mixed(fraction),
        attack=with_factor(attack),
        forward=backend.forward,
        batch_size=batch_size,
        order_generators=[streams.generator(0, "order")],
        attack_generators=[streams.generator(0, "training attack")],
    )
    return summary


def test_lenet5_is_the_reports():
    model = lenet(num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == 61_706
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    state = torch.get_rng_state()
    again = lenet(num_classes=10)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_models_say_what_they_cannot_do():
    with pytest.raises(UserError, match=r"has 28x28: .* dataset\.image_size=32 .* model=resnet8 on a processor"):
        build_model("lenet5", num_classes=10, image_shape=(1, 28, 28), seed=0)
    with pytest.raises(UserError, match="unknown model 'lenet'; known: lenet5"):
        build_model("lenet", num_classes=10, image_shape=(1, 32, 32), seed=0)


def test_the_learning_rate_falls_by_a_third_after_every_four_epochs():
    rates = [learning_rate_at(e, initial=1e-3, milestones=[4, 8, 12], decay_factor=1 / 3) for e in range(15)]
    assert rates[:4] == [1e-3] * 4
    assert rates[4:8] == [pytest.approx(1e-3 / 3)] * 4
    assert rates[12] == pytest.approx(1e-3 / 27)


def test_an_epoch_is_the_plain_loop_of_the_report(images):
    """One epoch against a loop written from the formula: mixed batch, mean cross-entropy, Adam."""
    train, _ = images
    attack = functools.partial(pgd, epsilon=0.1, step_size=0.05, num_steps=2)
    ours, plain = lenet(), lenet()
    summary = epoch(ours, train, attack=attack, fraction=0.5, batch_size=50)

    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    order = torch.randperm(120, generator=streams.generator(0, "order"))
    starts = streams.generator(0, "training attack")
    total, wrong = 0.0, [0, 0]
    for index in (order[:50], order[50:100], order[100:]):
        x, y = train.images[index].float() / 255, train.labels[index]
        half = len(index) // 2
        x[:half] = attack(plain, x[:half], y[:half], generator=starts)
        logits = plain(x)
        loss = nn.functional.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(index)
        is_wrong = logits.argmax(1) != y
        wrong[0] += int(is_wrong[half:].sum())
        wrong[1] += int(is_wrong[:half].sum())
    assert summary.num_steps == 3
    assert summary.train_loss == pytest.approx(total / 120, rel=1e-6)
    assert (summary.clean_error, summary.attacked_error) == (wrong[0] / 60, wrong[1] / 60)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_native_and_torch_train_alike(images):
    """One adversarial epoch on either backend: the same counts, the same weights up to rounding."""
    try:
        native.engine()
    except NativeUnavailable as reason:
        pytest.skip(str(reason))
    train, _ = images
    models = {}
    for name in ("torch", "native"):
        model = lenet()
        backend = choose_backend(name, model, CPU, image_shape=(1, 32, 32))
        attack = functools.partial(pgd, epsilon=0.1, step_size=0.05, num_steps=2, ascend=backend.ascend)
        models[name] = model, epoch(model, train, attack=attack, fraction=0.5, batch_size=40, backend=backend)
    (ours, summary), (compiled, other) = models.values()
    assert summary.train_loss == pytest.approx(other.train_loss, rel=1e-4)
    for a, b in zip(ours.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_natural_training_learns_and_attacks_nothing(images):
    train, _ = images
    model = lenet()
    first = epoch(model, train, batch_size=10, learning_rate=3e-3)
    for _ in range(4):
        last = epoch(model, train, batch_size=10, learning_rate=3e-3)
    assert last.train_loss < 0.7 * first.train_loss
    assert last.attacked_error is None


def test_a_running_average_follows_every_step(images):
    train, _ = images
    model = lenet()
    start = [p.detach().clone() for p in model.parameters()]
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    epoch(model, train, batch_size=120, average=average)  # one step: the first update copies
    assert average.n_averaged == 1
    for mean, now, before in zip(average.module.parameters(), model.parameters(), start, strict=True):
        assert torch.equal(mean, now)
        assert not torch.equal(now, before)


def test_divergence_names_place_and_quantity(images):
    train, _ = images
    model = lenet()
    with torch.no_grad():
        model.fc2.bias.fill_(math.nan)
    assert epoch(model, train) == Diverged("the loss is nan at step 1")
    ended = epoch(lenet(), train, batch_size=120, learning_rate=math.inf)
    assert isinstance(ended, Diverged)
    assert re.fullmatch(r"weights .* are not finite at step 1", ended.reason)


def measured(model, split, epsilons, batch_size=25, **settings):
    attack = functools.partial(pgd, step_size=0.05, num_steps=3, **settings)
    return evaluate(
        model,
        split,
        attack=attack,
        epsilons=epsilons,
        batch_size=batch_size,
        seed=0,
        device=CPU,
        logits=TORCH.logits,
    ).by_class(3)


def test_class_errors_equal_a_plain_double_loop(images):
    train, test = images
    model = lenet()
    for _ in range(3):
        epoch(model, train, batch_size=10, learning_rate=3e-3)
    clean, small, large = measured(model, test, [0.0, 0.05, 0.2], use_random_start=False)
    for errors, epsilon in ((clean, 0.0), (small, 0.05), (large, 0.2)):
        for k in range(3):
            count = natural = boundary = 0
            for image, label in zip(test.images, test.labels, strict=True):
                if label == k:
                    x, y = image[None].float() / 255, label[None]
                    x_adv = pgd(model, x, y, epsilon=epsilon, step_size=0.05, num_steps=3, use_random_start=False)
                    is_right = bool(model(x).argmax(1) == y)
                    is_right_attacked = bool(model(x_adv).argmax(1) == y)
                    count += 1
                    natural += not is_right
                    boundary += is_right and not is_right_attacked
            assert (errors.count[k], errors.num_natural_errors[k], errors.num_boundary_errors[k]) == (
                count,
                natural,
                boundary,
            )
    assert clean.num_boundary_errors.sum() == 0
    assert large.overall_robust_error > clean.overall_robust_error


class NotFinite(nn.Module):
    """Always class 0 and sure; images whose first pixel is in ``bad`` (0..255), or attacked ones, get such a value."""

    def __init__(self, value, *, bad=(), is_bad_attacked=False):
        super().__init__()
        self.value, self.bad, self.is_bad_attacked = value, bad, is_bad_attacked

    def forward(self, x):
        pixel = 255 * x[:, 0, 0, 0]
        is_bad = torch.stack([(pixel - bad).abs() < 1e-3 for bad in self.bad]).any(0) if self.bad else pixel < -1
        if self.is_bad_attacked:
            is_bad |= (pixel - pixel.round()).abs() > 1e-3
        sure = torch.tensor([9.0, 0.0, 0.0]) + 0 * pixel[:, None]
        values = torch.tensor([self.value, 0.0, 0.0])
        return torch.where(is_bad[:, None], values, sure)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_errors_clean_and_attacked(value):
    images = torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1).expand(12, 1, 4, 4) * 10 + 50
    split = Split(images=images.clone(), labels=torch.tensor([0, 1, 2] * 4))
    settings = {"epsilons": [0.0, 0.003], "batch_size": 5, "seed": 0, "device": CPU, "logits": TORCH.logits}
    attack = functools.partial(pgd, step_size=0.001, num_steps=1)

    found = evaluate(NotFinite(value, bad=(50, 60, 80)), split, attack=attack, **settings)  # classes 0, 1 and 0
    clean, attacked = found.by_class(3)
    assert clean.num_natural_errors.tolist() == attacked.num_natural_errors.tolist() == [2, 4, 4]
    assert clean.num_boundary_errors.tolist() == [0, 0, 0]
    assert found.is_not_finite.nonzero().flatten().tolist() == [0, 1, 3]

    found = evaluate(NotFinite(value, is_bad_attacked=True), split, attack=attack, **settings)
    clean, attacked = found.by_class(3)
    assert clean.num_robust_errors.tolist() == [0, 4, 4]
    assert attacked.num_boundary_errors.tolist() == [4, 0, 0]
    assert found.is_not_finite.nonzero().flatten().tolist() == [0, 3, 6, 9]


@pytest.mark.parametrize("epsilon", [8, -0.1, math.nan])
def test_a_radius_out_of_range_is_refused_before_anything_is_measured(images, epsilon):
    with pytest.raises(UserError, match=rf"epsilon={epsilon:g} must lie in \[0, 1\]"):
        measured(lenet(), images[1], [0.1, epsilon])


def test_training_counts_logits_that_are_not_finite_as_wrong():
    x, y = torch.rand(4, 2), torch.zeros(4, dtype=torch.int64)
    logits = torch.tensor([[5.0, 0.0], [5.0, -math.inf], [math.nan, 0.0], [0.0, 5.0]])

    def attack(x, y, *, factor):
        assert factor is None
        return x

    def forward(x):
        return logits.repeat(len(x) // 4, 1)

    for objective in (
        objectives.Mixed(0), objectives.Paired(), objectives.SplitLoss(), report_code.SplitByPrediction(),
    ):  # fmt: skip
        seen, _ = step_loss(objective, x, y, forward=forward, attack=attack)
        assert seen.is_wrong_clean.tolist() == [False, True, True, True]
        assert seen.is_wrong_attacked.tolist() in ([], [False, True, True, True])


def test_a_radius_gives_the_same_numbers_whichever_others_are_measured(images):
    _, test = images
    model = lenet()
    _, together = measured(model, test, [0.02, 0.1])
    (alone,) = measured(model, test, [0.1])
    assert torch.equal(together.num_boundary_errors, alone.num_boundary_errors)


def test_evaluation_restores_the_mode(images):
    model = lenet().train()
    measured(model, images[1], [0.1])
    assert model.training


class Renamed(nn.Module):
    """LeNet-5 as other people write it: other names, same shapes in the same order."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5), nn.Conv2d(16, 120, 5))
        self.classifier = nn.Sequential(nn.Linear(120, 84), nn.Linear(84, 3))


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_foreign_state_dicts_load_in_order(tmp_path, wrapper):
    foreign, path = Renamed(), tmp_path / "foreign.pt"
    state = foreign.state_dict()
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, path)
    model = lenet()
    assert checkpoints.load_weights(path, model) == "in order"
    assert torch.equal(model.conv3.weight, foreign.features[2].weight)
    assert torch.equal(model.fc2.bias, foreign.classifier[1].bias)


def test_own_checkpoints_and_prefixes_load_by_name(tmp_path):
    source = lenet(seed=5)
    checkpoints.save_weights(tmp_path / "a.safetensors", source, origin={"run_id": "r", "seed": 5})
    torch.save({f"module._orig_mod.{k}": v for k, v in source.state_dict().items()}, tmp_path / "b.pt")
    for name in ("a.safetensors", "b.pt"):
        model = lenet(seed=6)
        assert checkpoints.load_weights(tmp_path / name, model) == "by name"
        assert torch.equal(model.fc1.weight, source.fc1.weight)
    assert origin.read_origin(tmp_path / "a.safetensors") == {"run_id": "r", "seed": 5}
    assert origin.read_origin(tmp_path / "b.pt") is None


class Bomb:
    """Unpickling this would run code."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "no such checkpoint file"),
        (lambda path: path.write_text("hello"), "is not a checkpoint: neither safetensors nor a PyTorch state_dict"),
        (lambda path: path.write_text("the quick brown fox"), "is not a checkpoint"),
        (lambda path: path.write_text("run_id,dataset,model\n"), "is not a checkpoint"),
        (lambda path: path.write_bytes(b""), "is not a checkpoint"),
        (lambda path: torch.save(Bomb(), path), "is not a checkpoint"),
        (lambda path: torch.save([1, 2], path), "holds no state_dict"),
        (lambda path: torch.save({"epoch": 3}, path), "holds no state_dict"),
        (lambda path: torch.save(lenet(num_classes=4).state_dict(), path), r"fc2.weight has shape \(4, 84\)"),
        (lambda path: torch.save({"w": torch.zeros(3)}, path), "holds 1 tensors, the model has 10"),
        (
            lambda path: torch.save({k: v * math.nan for k, v in lenet().state_dict().items()}, path),
            "conv1.weight holds values that are not finite",
        ),
        (
            lambda path: torch.save({k: v.double() * 1e300 for k, v in lenet().state_dict().items()}, path),
            "conv1.weight holds values that are not finite",  # in float32
        ),
        (
            lambda path: torch.save({k: v.to(torch.complex64) for k, v in lenet().state_dict().items()}, path),
            "conv1.weight is no plain tensor",
        ),
        (
            lambda path: torch.save({k: v.to("meta") for k, v in lenet().state_dict().items()}, path),
            "conv1.weight is no plain tensor",
        ),
    ],
)
def test_what_is_no_checkpoint_is_refused_by_name(tmp_path, make, message):
    path = tmp_path / "file.pt"
    make(path)
    with pytest.raises(UserError, match=message) as caught:
        checkpoints.load_weights(path, lenet())
    assert str(path) in str(caught.value)


def test_a_checkpoint_is_the_same_bytes_every_time(tmp_path):
    for name in ("a", "b"):
        checkpoints.save_weights(tmp_path / name, lenet(), origin={"run_id": "r", "seed": 5, "method": "natural"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_streams_are_independent_of_one_another_and_reproducible():
    first = torch.rand(4, generator=streams.generator(0, "order", 1))
    assert torch.equal(first, torch.rand(4, generator=streams.generator(0, "order", 1)))
    seeds = {streams.derive_seed(s, name, i) for s in range(5) for name in ("order", "attack") for i in range(5)}
    assert len(seeds) == 50
    # The stored numbers pin the derivation: another one would change every published result.
    assert streams.derive_seed(0, "order", 0) == 3991725939186754870


def test_backends_are_chosen_by_model_and_device():
    assert choose_backend("torch", lenet(), CPU) is TORCH
    other = LeNet5(num_classes=3, in_channels=3)
    assert choose_backend("auto", other, CPU) is TORCH
    with pytest.raises(UserError, match=r"^backend=native: no image size is known; use backend=auto$"):
        choose_backend("native", other, CPU)
    with pytest.raises(UserError, match=r"^backend=native works on the processor, not on meta; use backend=auto$"):
        choose_backend("native", other, torch.device("meta"))


def test_splits_refuse_what_is_no_image():
    with pytest.raises((TypeError, ValueError), match="uint8"):
        Split(images=torch.zeros(1, 1, 2, 2, dtype=torch.int32), labels=torch.zeros(1, dtype=torch.int64))


def test_class_errors_are_values(images):
    (errors,) = measured(lenet(), images[1], [0.1])
    with pytest.raises(dataclasses.FrozenInstanceError):
        errors.count = None


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16, torch.float64])
def test_a_checkpoint_of_any_precision_loads(tmp_path, kind):
    other, model = lenet(seed=1), lenet()
    safetensors.torch.save_file({k: v.to(kind) for k, v in other.state_dict().items()}, tmp_path / "x.safetensors")
    assert checkpoints.load_weights(tmp_path / "x.safetensors", model) == "by name"
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs.to(kind).float())

"""Residual networks: sizes from formulas, structure, normalisation inside, and what they need of their surroundings."""

import logging
import re

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from frl_repro.attacks import pgd
from frl_repro.basics import streams
from frl_repro.basics.errors import UserError
from frl_repro.data import Dataset, Split
from frl_repro.models import Normalise, build_model, checkpoints, fuse
from frl_repro.models.compute.backends import TORCH, choose_backend
from frl_repro.models.networks import new_network
from frl_repro.results.tables import reading
from frl_repro.runs import experiment
from frl_repro.settings.config import RunConfig
from frl_repro.settings.parse import parse
from frl_repro.settings.schema import LeNet5Config, PreActResNet18Config
from frl_repro.training import objectives
from frl_repro.training.build import check_batches
from frl_repro.training.trainer import EpochSummary, fewest_images, train_epoch
from support import composed

NAMES = ("preact_resnet18", "wrn28_10")
SCALE = {"mean": (0.5,), "std": (0.25,)}


def network(name="preact_resnet18", *, width=2, num_classes=10, image_shape=(3, 32, 32), seed=0, **settings):
    return build_model(
        name, num_classes=num_classes, image_shape=image_shape, seed=seed, width=width, **{**SCALE, **settings}
    )


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def conv(kernel, channels_in, channels_out):
    return kernel * kernel * channels_in * channels_out


def expected_size(name, width, num_classes, channels):
    """Count by the papers' tables: two numbers a channel for batch norm, no biases but the last layer's."""
    stages, blocks, first = ((width * 2**s for s in range(4)), 2, width) if name == "preact_resnet18" else (
        (16 * width * 2**s for s in range(3)), 4, 16
    )  # fmt: skip
    total, current = conv(3, channels, first), first
    for place, out in enumerate(stages):
        for block in range(blocks):
            total += 2 * current + conv(3, current, out) + 2 * out + conv(3, out, out)
            if current != out or (block == 0 and place > 0):
                total += conv(1, current, out)
            current = out
    total += 2 * current if name == "wrn28_10" else 0
    return total + current * num_classes + num_classes


@pytest.mark.parametrize(
    ("name", "width", "published"), [("preact_resnet18", 64, 11_171_146), ("wrn28_10", 10, 36_479_194)]
)
def test_full_size_is_the_published_one(name, width, published):
    assert num_parameters(network(name, width=width)) == published == expected_size(name, width, 10, 3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("width", "num_classes", "channels"), [(1, 2, 1), (2, 7, 3), (3, 100, 3)])
def test_sizes_follow_width_classes_and_channels(name, width, num_classes, channels):
    model = network(name, width=width, num_classes=num_classes, image_shape=(channels, 32, 32))
    assert num_parameters(model) == expected_size(name, width, num_classes, channels)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 9, 21), (1, 40, 33)])
def test_any_image_from_8_pixels_with_any_number_of_classes(name, shape):
    model = network(name, num_classes=7, image_shape=shape).eval()
    assert model(torch.rand(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("shape", [(3, 7, 32), (1, 32, 4)])
def test_smaller_images_are_refused(shape):
    with pytest.raises(UserError, match=rf"images of {shape[1]}x{shape[2]} are too small .* takes 8x8"):
        network(image_shape=shape)


def reference(model, x, *, has_last_norm):
    """The network written out from the paper's figure, on the same weights, in evaluation mode."""

    def norm(bn, v):
        shape = (1, -1, 1, 1)
        scale = bn.weight / (bn.running_var + bn.eps).sqrt()
        return (v - bn.running_mean.view(shape)) * scale.view(shape) + bn.bias.view(shape)

    x = (x - 0.5) / 0.25
    x = nn.functional.conv2d(x, model.conv1.weight, padding=1)
    for place, stage in enumerate(model.stages):
        for index, block in enumerate(stage):
            stride = 2 if place > 0 and index == 0 else 1
            activated = norm(block.bn1, x).clamp(min=0)
            inner = nn.functional.conv2d(activated, block.conv1.weight, stride=stride, padding=1)
            inner = nn.functional.conv2d(norm(block.bn2, inner).clamp(min=0), block.conv2.weight, padding=1)
            if block.shortcut is not None:
                x = nn.functional.conv2d(activated, block.shortcut.weight, stride=stride)
            x = x + inner
    if has_last_norm:
        x = norm(model.bn, x).clamp(min=0)
    return x.flatten(2).mean(2) @ model.linear.weight.T + model.linear.bias


@pytest.mark.parametrize("name", NAMES)
def test_forward_pass_is_the_papers(name):
    model = network(name, width=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # fresh statistics would hide which norm comes where
                for values, low in ((module.weight, 0.5), (module.running_var, 0.5), (module.bias, -0.5)):
                    values.copy_(low + torch.rand(values.shape, generator=generator))
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator))
        x = torch.rand(2, 3, 16, 16, generator=generator)
        expected = reference(model, x, has_last_norm=name == "wrn28_10")
        torch.testing.assert_close(model.eval()(x), expected, rtol=1e-4, atol=1e-4)


def test_first_weights_have_the_standard_deviation_of_their_fan():
    weight = network("wrn28_10", width=2).get_parameter("stages.layer3.1.conv1.weight")
    assert float(weight.detach().std()) == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    other = network("wrn28_10", width=2, seed=1).get_parameter("stages.layer3.1.conv1.weight")
    assert not torch.equal(weight, other)
    assert torch.equal(weight, network("wrn28_10", width=2).get_parameter("stages.layer3.1.conv1.weight"))


# Normalisation


def test_normalisation_is_a_layer_by_channel():
    x = torch.rand(2, 3, 4, 4)
    layer = Normalise((0.1, 0.2, 0.3), (0.5,), num_channels=3)
    expected = torch.stack([(x[:, c] - m) / 0.5 for c, m in enumerate((0.1, 0.2, 0.3))], 1)
    torch.testing.assert_close(layer(x), expected)
    assert list(layer.parameters()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": (0.1, 0.2)}, r"model\.mean has 2 numbers, the images have 3 channels: give one number for each"),
        ({"std": (0.1,) * 4}, r"model\.std has 4 numbers"),
        ({"std": (0.1, 0.0, 0.1)}, r"model\.std=\[0\.1, 0\.0, 0\.1\]: every number must be above 0"),
    ],
)
def test_normalisation_that_does_not_fit_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        network(**settings)


def dataset(num_classes=4, shape=(3, 8, 8), **scale):
    images = torch.zeros(num_classes, *shape, dtype=torch.uint8)
    split = Split(images=images, labels=torch.arange(num_classes))
    none = torch.arange(0)
    names = tuple("abcdefg"[:num_classes])
    return Dataset("x", names, split, None, split, none, none, **scale)


def test_a_network_takes_classes_channels_and_scale_from_the_data_unless_told():
    data = dataset(channel_mean=(0.1, 0.2, 0.3), channel_std=(0.7,))
    model = new_network(PreActResNet18Config("preact_resnet18", 2, None, None), data, seed=0)
    assert model.linear.out_features == 4
    torch.testing.assert_close(model.normalise.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(model.normalise.std.flatten(), torch.tensor([0.7] * 3))
    told = new_network(PreActResNet18Config("preact_resnet18", 2, [0.4], None), data, seed=0)
    assert told.normalise.mean.flatten().tolist() == pytest.approx([0.4] * 3)
    lenet = new_network(LeNet5Config("lenet5"), dataset(shape=(1, 32, 32)), seed=0)
    assert next(lenet.buffers(), None) is None


# Surroundings


def test_images_and_gradients_keep_their_order_in_memory_whatever_the_network_uses():
    model = network(width=8).eval()
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    x = torch.rand(4, 3, 16, 16)
    other = network(width=8).to(memory_format=torch.contiguous_format).eval()
    torch.testing.assert_close(model(x), other(x), rtol=1e-4, atol=1e-4)
    x_adv = pgd(model, x, torch.arange(4), epsilon=0.1, step_size=0.05, num_steps=1, use_random_start=False)
    assert x_adv.is_contiguous()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [1, 4, 7])
def test_narrow_networks_keep_out_of_the_layout_whose_gradients_break_the_heap(name, width):
    model = network(name, width=width)  # a channels-last one ends the process on a machine with AVX2 alone
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    for _ in range(10):
        model(torch.rand(16, 3, 8, 8)).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_an_attack_leaves_batch_statistics_alone():
    model = network().train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    generator = torch.Generator().manual_seed(0)
    arguments = {"epsilon": 0.1, "step_size": 0.05, "num_steps": 2, "generator": generator}
    pgd(model, torch.rand(4, 3, 16, 16), torch.arange(4), **arguments)
    assert model.training
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("name", NAMES)
def test_pytorch_serves_them_where_no_image_size_is_known_and_they_are_not_fused(name):
    models = [network(name, width=1, seed=seed) for seed in range(2)]
    assert choose_backend("auto", models[0], torch.device("cpu")) is TORCH
    with pytest.raises(UserError, match=r"^backend=native: no image size is known; use backend=auto$"):
        choose_backend("native", models[0], torch.device("cpu"))
    with pytest.raises(ValueError, match="buffers"):
        fuse(models)


def toy_images(num=48):
    """Three classes that differ in which channel is bright."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num) % 3
    images = torch.randint(0, 100, (num, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images[torch.arange(num), labels] += 100
    return Split(images=images, labels=labels)


def attack(model, x, y, *, factor, generator):
    assert factor is None
    return pgd(model, x, y, epsilon=8 / 255, step_size=4 / 255, num_steps=2, generator=generator)


def train(model, split, num_epochs, average=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def update():
        optimizer.step()
        if average is not None:
            average.update_parameters(model)

    for epoch in range(num_epochs):
        (summary,) = train_epoch(
            model,
            split,
            update=update,
            objective=objectives.Mixed(0.5),
            attack=attack,
            forward=TORCH.forward,
            batch_size=16,
            order_generators=[streams.generator(0, "order", epoch)],
            attack_generators=[streams.generator(0, "training attack", epoch)],
        )
        assert isinstance(summary, EpochSummary)
    return summary


@pytest.mark.parametrize("name", NAMES)
def test_adversarial_training_learns_and_moves_batch_statistics_in_training_alone(name):
    model, split = network(name, num_classes=3, image_shape=(3, 8, 8)), toy_images()
    ema = get_ema_multi_avg_fn(0.5)
    average = AveragedModel(model, multi_avg_fn=ema, use_buffers=True)
    summary = train(model, split, 6, average)
    assert summary.clean_error < 0.1
    bn = model.stages.layer1[0].bn2
    assert int(bn.num_batches_tracked) == 18  # one for each step, none for its attack
    assert not torch.equal(bn.running_mean, torch.zeros(len(bn.running_mean)))
    with torch.no_grad():
        logits = average.module.eval()(split.images / 255)
    assert (logits.argmax(1) == split.labels).float().mean() > 0.9


@pytest.mark.parametrize("kind", ["ours", "prefixed", "renamed", "without normalisation"])
def test_checkpoints_of_ours_and_of_other_code_load(tmp_path, kind):
    model = network(mean=(0.1,), std=(0.3,))
    train(model, toy_images(), 1)
    other, path = network(seed=5), tmp_path / "model.pt"
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if kind == "ours":
        path = tmp_path / "model.safetensors"
        checkpoints.save_weights(path, model, origin={})
    else:
        if kind == "prefixed":
            state = {f"module.{name}": tensor for name, tensor in state.items()}
        elif kind == "renamed":
            state = {name.replace("stages.", "net."): tensor for name, tensor in state.items()}
        else:
            state = {name: tensor for name, tensor in state.items() if not name.startswith("normalise.")}
            other = network(seed=5, mean=(0.1,), std=(0.3,))
        torch.save(state, path)
    matched = checkpoints.load_weights(path, other)
    assert matched == ("in order" if kind == "renamed" else "by name")
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(model.eval()(x), other.eval()(x))  # its normalisation came along


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("stages.layer1.0.bn1.running_var", -1.0, "holds negative variances"),
        ("normalise.std", 0.0, "holds a standard deviation that is not above 0"),
        ("normalise.std", -0.2, "holds a standard deviation that is not above 0"),
    ],
)
def test_statistics_that_make_no_network_are_refused(tmp_path, name, value, message):
    state = network().state_dict()
    state[name].view(-1)[0] = value
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(UserError, match=f"{re.escape(name)} {message}"):
        checkpoints.load_weights(tmp_path / "x.pt", network(seed=1))


# Batches of one image


def images_of(num, side):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (num, 3, side, side), generator=generator, dtype=torch.uint8)
    return Split(images=images, labels=torch.arange(num) % 3)


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize(
    ("num", "batch_size", "num_accumulation", "fewest", "better"),
    [
        (18, 17, 1, 1, 16),
        (18, 1, 1, 1, 2),
        (18, 4, 4, 1, 6),
        (18, 10, 4, 1, 9),  # parts of 3, 3, 3 and 1
        (18, 9, 4, 3, None),
        (18, 100, 1, 18, None),
        (19, 6, 2, 1, 5),
        (1, 100, 1, 1, None),
    ],
)
def test_batch_norm_of_one_image_is_refused_where_and_only_where_training_would_break(
    side, num, batch_size, num_accumulation, fewest, better
):
    assert fewest_images(num, batch_size=batch_size, num_accumulation=num_accumulation) == fewest
    split, none = images_of(num, side), torch.arange(0)
    data = Dataset("x", ("a", "b", "c"), split, None, split, none, none)
    config = tiny("x", attack__fraction=1, trainer__batch_size=batch_size, trainer__num_accumulation=num_accumulation)
    model = network(width=1, num_classes=3, image_shape=(3, side, side))

    def epoch():
        train_epoch(
            model, split, update=lambda: None, objective=objectives.Mixed(0), attack=attack, forward=TORCH.forward,
            batch_size=batch_size, num_accumulation=num_accumulation,
            order_generators=[streams.generator(0, "order")], attack_generators=[streams.generator(0, "attack")],
        )  # fmt: skip

    if fewest > 1 or side == 9:  # the last stage still has 2 x 2 pixels
        check_batches(config, data, lambda: new_network(config.model, data, seed=0))
        epoch()
        return
    advice = "give more training images" if better is None else rf"give trainer\.batch_size={better}"
    with pytest.raises(UserError, match=rf"trainer\.batch_size={batch_size} of {num} training images .*: {advice}$"):
        check_batches(config, data, lambda: new_network(config.model, data, seed=0))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        epoch()


def test_a_batch_of_one_image_is_refused_before_anything_runs(tmp_path, monkeypatch):
    split, none = images_of(18, 8), torch.arange(0)
    data = Dataset("x", ("a", "b", "c"), split, split, split, none, none)
    monkeypatch.setattr(experiment, "load_dataset", lambda _: data)
    with pytest.raises(UserError, match=r"^trainer\.batch_size=17 of 18 training images leaves one image"):
        experiment.run(tiny(tmp_path / "run", trainer__batch_size=17))
    retrained = {
        "frl": "reweight", "recipe": "paper", "base_dir": str(tmp_path / "bases"), "retrain__trainer__batch_size": 17,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"^retrain\.trainer\.batch_size=17 of 18 training images leaves one image"):
        experiment.run(tiny(tmp_path / "retrained", **retrained))
    assert list(tmp_path.iterdir()) == []


# Whole runs


def tiny(folder, **changes):
    settings = {
        "dataset": "synthetic",
        "dataset__num_classes": 3,
        "dataset__num_train": 60,
        "dataset__num_test": 12,
        "dataset__validation_fraction": 0.2,
        "dataset__augmentation": "crop_flip",
        "model": "preact_resnet18",
        "model__width": 1,
        "trainer__num_epochs": 2,
        "trainer__batch_size": 16,
        "attack__num_steps": 1,
        "evaluation__num_steps": 1,
        "run_dir": str(folder),
        "num_threads": 1,
        **changes,
    }
    return parse(composed(**settings), RunConfig)


def contents(folder):
    return [(folder / name).read_bytes() for name in ("classwise.csv", "history.csv", "model.safetensors")]


def test_a_run_with_batch_norm_and_augmentation_is_repeatable_and_continues_to_the_same_bytes(tmp_path, monkeypatch):
    straight = experiment.run(tiny(tmp_path / "straight"))
    (other,) = experiment.run_all([tiny(tmp_path / "other", dataset__augmentation="none")])
    assert contents(other) != contents(straight)

    save, saved = checkpoints.save_state, []

    def save_and_stop(*arguments):
        save(*arguments)
        saved.append(1)
        if len(saved) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save_state", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(tiny(tmp_path / "broken"))
    continued = experiment.run(tiny(tmp_path / "broken"))
    assert len(saved) == 2
    assert contents(continued) == contents(straight)


def test_runs_that_cannot_be_fused_give_one_after_the_other_what_each_gives_alone(tmp_path, caplog):
    caplog.set_level(logging.INFO, "frl_repro")
    alone = [experiment.run(tiny(tmp_path / f"alone{seed}", seed=seed)) for seed in range(2)]
    together = experiment.run_all([tiny(tmp_path / f"together{seed}", seed=seed) for seed in range(2)])
    assert [contents(folder) for folder in together] == [contents(folder) for folder in alone]
    assert "model=preact_resnet18 has buffers or dropout: runs train one after the other" in caplog.text


def test_a_class_policy_retrains_a_network_with_batch_norm(tmp_path):
    changes = {
        "frl": "combined",
        "recipe": "paper",
        "base_dir": str(tmp_path / "bases"),
        "retrain__trainer__num_epochs": 1,
        "retrain__attack__num_steps": 1,
        "frl__num_steps": 1,
    }
    folder = experiment.run(tiny(tmp_path / "run", **changes))
    table = reading.read_classwise([folder / "classwise.csv"])
    assert set(table["epoch"]) == {0, 1}


def test_augmentation_reaches_training_batches_alone_and_labels_stay():
    split, seen = toy_images(), []

    def augment(images):
        seen.append(images)
        return images.flip(-1)

    class Checking(objectives.Mixed):
        def predict(self, x, y, **settings):
            flipped = seen[-1].flip(-1) / 255
            assert torch.equal(x, flipped)
            which = (split.images[None] == seen[-1][0][:, None]).flatten(2).all(2).nonzero()[:, 1]
            assert torch.equal(split.labels[which], y[0])
            return super().predict(x, y, **settings)

    train_epoch(
        network(num_classes=3, image_shape=(3, 8, 8)),
        split,
        update=lambda: None,
        objective=Checking(0),
        attack=attack,
        forward=TORCH.forward,
        batch_size=20,
        order_generators=[streams.generator(0, "order")],
        attack_generators=[streams.generator(0, "training attack")],
        augment=augment,
    )
    assert [tuple(images.shape) for images in seen] == [(1, 20, 3, 8, 8), (1, 20, 3, 8, 8), (1, 8, 3, 8, 8)]
    assert all(images.dtype == torch.uint8 for images in seen)

"""Sanity checks of robustness: a robust model passes, masked ones are caught, numbers have closed forms."""

import dataclasses
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from frl_repro.attacks import input_gradient
from frl_repro.attacks.linf import random_start
from frl_repro.basics.errors import UserError
from frl_repro.commands import cli, report
from frl_repro.data import Split, load_dataset
from frl_repro.data.synthetic import load_synthetic
from frl_repro.evaluation.sanity import Attacker, gather, loss_along, random_signs, strongest_noise
from frl_repro.models import build_model, checkpoints
from frl_repro.models.compute.backends import TORCH, choose_backend
from frl_repro.results.figures.sanity import sanity_figure
from frl_repro.results.report.sanity import sanity_grids, sanity_table
from frl_repro.results.tables import sanity_rules
from frl_repro.results.tables.sanity_rules import (
    RULES,
    Evidence,
    failed,
    measured,
    radii_of_sweep,
    read_sanity,
    verdicts,
)
from frl_repro.runs import experiment
from frl_repro.settings.config import SanityConfig
from frl_repro.settings.lookup import all_keys
from support import ROOT, tiny_run, write_study

REFERENCE = ROOT / "outputs" / "reference" / "models" / "adversarial"
CPU = torch.device("cpu")
EPSILON = 16 / 255


class Wrapped(nn.Module):
    """A model behind something that hides its gradient."""

    def __init__(self, model, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x):
        return self.after(self.model(self.before(x)))


MASKS = {
    "saturated": {"after": lambda z: 1e4 * z},
    "rounded": {"before": lambda x: (3 * x).round() / 3},
    "shattered": {"before": lambda x: x + 0.005 * torch.sin(2000 * x)},
}
"""Ways to hide a gradient while predictions stay about what they are."""

CAUGHT_BY = {
    "saturated": {"robust_error_at_radius_1", "uniform_to_pgd", "signs_to_pgd", "transfer_minus_pgd", "share_vanished",
                  "share_rising"},
    "rounded": {"robust_error_at_radius_1", "uniform_to_pgd", "signs_to_pgd", "transfer_minus_pgd", "share_vanished",
                "share_rising"},
    "shattered": {"robust_error_at_radius_1", "signs_to_pgd", "transfer_minus_pgd"},
}  # fmt: skip
"""What docs/sanity.md says of each; other checks may fail as well."""


def lenet_of_seed_0(num_classes=3):
    return build_model("lenet5", num_classes=num_classes, image_shape=(1, 32, 32), seed=0)


def lenet(path, *, num_classes):
    model = lenet_of_seed_0(num_classes)
    checkpoints.load_weights(path, model)
    return model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights of two small adversarially trained models that differ in their seed."""
    folder = tmp_path_factory.mktemp("trained")
    torch.set_num_threads(1)
    for seed in (0, 1):
        experiment.run(
            tiny_run(
                folder / f"seed{seed}",
                seed=seed,
                backend="auto",
                dataset__num_train=600,
                dataset__validation_fraction=0,
                trainer__num_epochs=8,
                trainer__batch_size=100,
                trainer__ema_decay=None,
                attack__num_steps=5,
            )
        )
    return [folder / f"seed{seed}" / "model.safetensors" for seed in (0, 1)]


@pytest.fixture(scope="module")
def images():
    return load_synthetic(num_classes=3, num_train=3, num_test=150, seed=0)[1]


def evidence_of(model, images, *, other=None, num_steps=20, num_images=None):
    backend = choose_backend("auto", model, CPU, image_shape=(1, 32, 32))
    attacker = None if other is None else Attacker(other, choose_backend("auto", other, CPU, image_shape=(1, 32, 32)))
    part = images if num_images is None else images.select(torch.arange(num_images))
    return gather(
        model, part, epsilon=EPSILON, num_steps=num_steps, seed=0, device=CPU, backend=backend, other=attacker
    )


def failing(evidence):
    return {
        rule.quantity
        for rule, value in zip(RULES, measured(evidence), strict=True)
        if value is not None and not rule.passes(value)
    }


def test_a_robust_model_passes_every_check(trained, images):
    model, other = (lenet(path, num_classes=3) for path in trained)
    evidence = evidence_of(model, images, other=other)
    assert failing(evidence) == set()
    assert None not in measured(evidence)


FEW = {"num_steps": 10, "num_images": 60}  # PyTorch takes seconds for what native code does at once


@pytest.fixture(scope="module")
def plain(trained, images):
    return evidence_of(lenet(trained[0], num_classes=3), images, other=lenet(trained[1], num_classes=3), **FEW)


@pytest.mark.parametrize("name", MASKS)
def test_a_masked_model_is_caught(trained, images, plain, name):
    model, other = (lenet(path, num_classes=3) for path in trained)
    evidence = evidence_of(Wrapped(model, **MASKS[name]), images, other=other, **FEW)
    # What makes masking dangerous: it looks more robust, and predicts as well.
    assert evidence.num_broken("pgd") < plain.num_broken("pgd") / 2
    assert abs(int(evidence.is_natural_error.sum()) - int(plain.is_natural_error.sum())) <= 3
    assert failing(evidence) >= CAUGHT_BY[name]
    without_other = dataclasses.replace(
        evidence, is_attacked_error={k: v for k, v in evidence.is_attacked_error.items() if k[0] != "transfer"}
    )
    assert failing(without_other) >= CAUGHT_BY[name] - {"transfer_minus_pgd"}


@pytest.mark.data
def test_a_published_model_passes_and_fails_once_masked():
    settings = SimpleNamespace(
        name="fashion_mnist", root=None, download=True, cache_dir=None, validation_fraction=0, selection_fraction=0,
        split_seed=0, imbalance="none", imbalance_ratio=None, num_train=None, num_test=200,
    )  # fmt: skip
    images = load_dataset(settings).test
    model, other = (lenet(REFERENCE / f"seed{seed}.safetensors", num_classes=10) for seed in (0, 1))
    assert failing(evidence_of(model, images, other=other)) == set()
    for name, mask in MASKS.items():
        evidence = evidence_of(Wrapped(model, **mask), images, other=other, **FEW)
        assert failing(evidence) >= CAUGHT_BY[name], name


# Closed forms


class Linear(nn.Module):
    """Logits (0, w x + b) of two classes: the loss of class 0 is log(1 + exp(w x + b))."""

    def __init__(self, weight, bias=0.0):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = bias

    def forward(self, x):
        z = (x * self.weight).flatten(1).sum(1) + self.bias
        return torch.stack([torch.zeros_like(z), z], dim=1)


def test_along_the_gradient_of_a_linear_model_the_loss_rises_by_the_norm_of_its_weights():
    weight = torch.tensor([0.5, -1.0, 0.25, -0.25]).view(1, 2, 2)
    model, x, y = Linear(weight, bias=-1.0), torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    gradient = input_gradient(model, x, y)[1]
    distances = torch.tensor([0.0, 0.1, 0.3], dtype=torch.float64)
    losses = loss_along(model, x, y, gradient.sign(), distances, logits=TORCH.logits)
    start = 0.5 * weight.sum().item() - 1.0
    expected = torch.log1p(torch.exp(start + distances * weight.abs().sum().item()))
    torch.testing.assert_close(losses, expected.view(-1, 1).expand(3, 3).double(), rtol=1e-6, atol=1e-6)


def test_the_way_ends_at_the_edge_of_the_image_range():
    model, x = Linear(torch.ones(1, 2, 2)), torch.full((1, 1, 2, 2), 0.9)
    losses = loss_along(
        model, x, torch.zeros(1, dtype=torch.int64), torch.ones_like(x), torch.tensor([0.1, 0.7]), logits=TORCH.logits
    )
    assert losses.flatten().tolist() == pytest.approx([math.log1p(math.exp(4.0))] * 2, rel=1e-5)


def linear_split(num=40):
    """Images of two classes, uniform noise around a level; `Linear` with equal weights tells them apart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num) % 2
    levels = 127 + 45 * (2 * labels - 1)
    noise = torch.randint(-10, 11, (num, 1, 8, 8), generator=generator)
    return Split(images=(levels.view(-1, 1, 1, 1) + noise).to(torch.uint8), labels=labels)


def test_evidence_of_a_linear_model_is_known():
    """It is broken exactly where the ball is wider than the distance to the plane, by PGD and by one step alike."""
    split, model = linear_split(), Linear(torch.full((1, 8, 8), 1.0), bias=-32.0)
    evidence = evidence_of(model, split)
    margin = (split.images.float() / 255).flatten(1).mean(1).sub(0.5).abs()
    assert not evidence.is_natural_error.any()
    for radius in evidence.radii:
        assert evidence.num_broken("pgd", radius) == int((margin < radius).sum())
    values = dict(zip([rule.quantity for rule in RULES], measured(evidence), strict=True))
    assert values["robust_error_at_radius_1"] == 1.0
    assert values["largest_drop"] == values["fgsm_minus_pgd"] == 0.0
    assert values["share_rising"] == 1.0
    assert values["transfer_minus_pgd"] is None
    wrong_side = torch.sigmoid(-(split.images.double() / 255).flatten(1).sum(1).sub(32).abs())
    # Right up to what float32 resolves of 1 - p, which is where gradients count as vanished.
    np.testing.assert_allclose(evidence.largest_gradient, wrong_side.numpy(), rtol=1e-5, atol=sanity_rules.VANISHED)
    np.testing.assert_array_equal(evidence.distances, np.linspace(0, EPSILON, 17))


def test_noise_keeps_a_draw_that_is_misclassified_and_stays_in_the_ball():
    x, y = torch.full((50, 1, 8, 8), 0.5), torch.zeros(50, dtype=torch.int64)
    model = Linear(torch.full((1, 8, 8), 1.0), bias=-32.0)  # wrong where the noise's sum is positive: every other draw
    for draw in (random_start, random_signs):
        once, often = (
            strongest_noise(model, x, y, epsilon=0.1, generator=torch.Generator().manual_seed(0), draw=draw,
                            logits=TORCH.logits, num_draws=num)
            for num in (1, 20)
        )  # fmt: skip
        assert 10 < int((TORCH.logits(model, once).argmax(1) == 1).sum()) < 40
        assert bool((TORCH.logits(model, often).argmax(1) == 1).all())
        assert float((often - x).abs().max()) <= 0.1 + 1e-6
    corners = random_signs(x, 0.1, torch.Generator().manual_seed(0)) - x
    np.testing.assert_allclose(corners.abs().numpy(), 0.1, rtol=1e-5)
    assert abs(float(corners.sign().mean())) < 0.1


# Rules


def flags(*indices, num=100):
    result = np.zeros(num, dtype=bool)
    result[list(indices)] = True
    return result


def made(**changes):
    """Evidence on 100 images of 2 classes of a model that passes every check with room; 10 are wrong clean."""
    errors = {("pgd", radius): flags(*range(10, 10 + n)) for radius, n in
              zip(radii_of_sweep(EPSILON), (5, 10, 20, 40, 70, 90, 90, 90), strict=True)}  # fmt: skip
    for name, num in {"more_steps": 41, "more_restarts": 42, "single_step": 30, "uniform_noise": 2, "random_signs": 4,
                      "transfer": 20}.items():  # fmt: skip
        errors[name, EPSILON] = flags(*range(10, 10 + num))
    losses = {name: np.linspace(1, 2, 17)[:, None] * np.ones(90) for name in sanity_rules.DIRECTIONS}
    given = {
        "labels": np.arange(100) % 2,
        "is_natural_error": flags(*range(10)),
        "is_attacked_error": errors,
        "largest_gradient": np.full(90, 1e-3),
        "distances": np.linspace(0, EPSILON, 17),
        "losses": losses,
        "epsilon": EPSILON,
        "num_steps": 20,
    }
    given["is_attacked_error"] |= changes.pop("errors", {})
    return Evidence(**given | changes)


def test_numbers_are_what_they_are_called():
    values = {rule.quantity: [] for rule in RULES}
    for rule, value in zip(RULES, measured(made()), strict=True):
        values[rule.quantity].append(value)
    assert values == {
        "largest_drop": [0.0], "robust_error_at_radius_1": [1.0], "change": [0.01, 0.02],
        "uniform_to_pgd": [2 / 40], "signs_to_pgd": [4 / 40], "transfer_minus_pgd": [-0.2], "share_vanished": [0.0],
        "share_rising": [1.0], "fgsm_minus_pgd": [-0.1],
    }  # fmt: skip
    assert failing(made()) == set()


def broken(attack, num, *, radius=EPSILON):
    return {"errors": {(attack, radius): flags(*range(10, 10 + num))}}


FALLING = np.linspace(1, 2, 17)[:, None] * np.ones(90)
FALLING[1, :5] = 1.0  # the loss of 5 of 90 images stays

CASES = {
    "drop of 1": (broken("pgd", 69, radius=64 / 255) | {}, set()),
    "drop of 2": (broken("pgd", 38, radius=32 / 255), {"largest_drop"}),
    "stops at 98": (broken("pgd", 88, radius=1.0), {"robust_error_at_radius_1", "largest_drop"}),
    "steps gain 3": (broken("more_steps", 43), {"change"}),
    "steps lose 3": (broken("more_steps", 37), {"change"}),
    "restarts gain 3": (broken("more_restarts", 43), {"change"}),
    "half by noise": (broken("uniform_noise", 20), {"uniform_to_pgd"}),
    "more by signs": (broken("random_signs", 45), {"signs_to_pgd"}),
    "black box as good": (broken("transfer", 40), set()),
    "black box better": (broken("transfer", 41), {"transfer_minus_pgd"}),
    "one step 1 better": (broken("single_step", 41), set()),
    "one step 2 better": (broken("single_step", 42), {"fgsm_minus_pgd"}),
    "one gradient vanishes": ({"largest_gradient": np.array([1e-9] + [1.0] * 89)}, {"share_vanished"}),
    "losses of 5 stay": ({"losses": {"gradient": FALLING}}, {"share_rising"}),
}


@pytest.mark.parametrize("case", CASES)
def test_each_rule_fails_just_beyond_its_threshold(case):
    changes, expected = CASES[case]
    assert failing(made(**changes)) == expected


def test_an_attack_that_breaks_nothing_is_no_match_for_noise():
    errors = {("pgd", EPSILON): flags(), ("uniform_noise", EPSILON): flags(), ("random_signs", EPSILON): flags()}
    assert {"uniform_to_pgd", "signs_to_pgd"} <= failing(made(errors=errors))


def test_wrong_images_count_once_whatever_an_attack_says_of_them():
    everywhere = {("single_step", EPSILON): flags(*range(40))}  # 10 of them are wrong clean
    assert made(errors=everywhere).num_broken("single_step") == 30


def test_the_checked_radius_is_part_of_the_sweep_once():
    assert len(radii_of_sweep(16 / 255)) == 8
    assert len(radii_of_sweep(0.0627450980392)) == 8  # 16/255 as people round it
    assert radii_of_sweep(0.05)[3:5] == [0.05, 16 / 255]


def test_nothing_of_the_model_is_changed(images, trained):
    model = Wrapped(lenet(trained[0], num_classes=3))
    model.train()
    model.model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    evidence_of(model, images, num_steps=2, num_images=12)
    assert model.training
    assert not model.model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_is_always_wrong_is_refused(images):
    model = Wrapped(lenet_of_seed_0(), after=lambda z: torch.tensor([1.0, 0.0, 0.0]) + 0 * z)
    only_ones = Split(images.images[:6], torch.ones(6, dtype=torch.int64))
    with pytest.raises(UserError, match="gets none of 6 images right: there is nothing to attack"):
        gather(model, only_ones, epsilon=0.1, num_steps=1, seed=0, device=CPU, backend=TORCH)


# Command, files, report

ARGUMENTS = (
    "dataset=synthetic", "dataset.num_classes=3", "dataset.num_train=3", "dataset.num_test=150", "num_images=90",
    "num_threads=1",
)  # fmt: skip


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["sanity.py", *arguments])
    return cli.sanity_main()


def test_the_command_writes_the_same_bytes_again_and_says_what_was_not_run(trained, monkeypatch, capsys, in_tmp):
    arguments = [f"checkpoint={trained[0]}", "num_steps=5", *ARGUMENTS]
    codes = [call(monkeypatch, *arguments, f"run_dir={name}") for name in ("a", "b")]
    printed = capsys.readouterr()
    table = read_sanity(in_tmp / "a" / "sanity.csv")
    assert codes == [1 if failed(table) else 0] * 2
    assert "transfer was not run: give other=FILE" in printed.out
    assert "HYDRA" not in printed.out + printed.err
    for name in ("sanity.csv", "sanity.png", "sanity.svg", "sanity.pdf"):
        assert (in_tmp / "a" / name).read_bytes() == (in_tmp / "b" / name).read_bytes()
    by_rule = {rule.quantity: (value, passes) for rule, value, passes in verdicts(table)}
    assert by_rule["transfer_minus_pgd"] == (None, None)
    recorded = json.loads((in_tmp / "a" / "run.json").read_text())
    assert set(recorded["checkpoints"]) == {str(trained[0])}
    assert {"config", "command", "git_commit", "versions"} <= recorded.keys()
    # Every class's error is an average that makes up that of all images.
    sweep = table[(table["check"] == "epsilon_sweep") & (table["rule"] == "")]
    for _, part in sweep.groupby("epsilon"):
        of_all, by_class = part[part["class_name"] == ""]["value"], part[part["class_name"] != ""]["value"]
        assert len(by_class) == 3
        assert by_class.mean() == pytest.approx(of_all.iloc[0])  # stratified: 30 each


def test_a_saturated_checkpoint_ends_with_code_1_and_the_names_of_checks(trained, monkeypatch, capsys, in_tmp):
    model = lenet(trained[0], num_classes=3)
    with torch.no_grad():
        model.fc2.weight *= 1e4
        model.fc2.bias *= 1e4
    torch.save(model.state_dict(), "masked.pt")
    assert call(monkeypatch, "checkpoint=masked.pt", f"other={trained[1]}", *ARGUMENTS) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: masked.pt fails ")
    assert printed.err.count("\n") == 1
    for name in CAUGHT_BY["saturated"]:
        assert name in printed.err
    (folder,) = (in_tmp / "outputs" / "sanity").glob("masked-*")
    assert {path.name for path in folder.iterdir()} == {
        "sanity.csv", "run.json", "sanity.png", "sanity.svg", "sanity.pdf",
    }  # fmt: skip
    assert "FAILS" in printed.out


def test_help_lists_every_key(monkeypatch, capsys):
    assert call(monkeypatch, "--help", "all") == 0
    shown = capsys.readouterr().out
    assert "Exit code 0: every check that was run passes" in shown
    for key in all_keys(SanityConfig):
        assert f"    {key}=" in shown


REFUSED = {
    "": "checkpoint is missing",
    "checkpoint=nowhere.pt": "checkpoint=nowhere.pt: no such file",
    "checkpoint=TRAINED other=nowhere.pt": "other=nowhere.pt: no such file",
    "checkpoint=TRAINED other=TRAINED": "transfer needs another model",
    "checkpoint=TRAINED num_images=1": "num_images=1: 1 images leave 2 of 3 classes without an image",
    "checkpoint=TRAINED epsilon=1": "epsilon=1: must lie in (0, 1)",
    "checkpoint=TRAINED num_steps=0": "num_steps=0: must lie in [1, 2^28)",
    "checkpoint=TRAINED evaluation.num_steps=3": "unknown key evaluation.num_steps; did you mean num_steps?",
    "checkpoint=TRAINED othr=x": "unknown key othr; did you mean other?",
}


@pytest.mark.parametrize("line", REFUSED)
def test_mistakes_are_one_line_and_nothing_is_written(line, trained, monkeypatch, capsys, in_tmp):
    own = [argument for argument in ARGUMENTS if argument.split("=")[0] not in line]
    assert call(monkeypatch, *line.replace("TRAINED", str(trained[0])).split(), *own) == 1
    printed = capsys.readouterr().err
    assert REFUSED[line] in printed
    assert printed.count("\n") == 1
    assert list(in_tmp.iterdir()) == []


def table_of(evidence, path):
    from frl_repro.results.tables.writing import write_table

    keys = {"run_id": "a-b", "dataset": "d", "model": "lenet5", "method": "combined", "seed": 3}
    write_table(path, sanity_rules.rows(evidence, keys, ["Shirt", "Bag"]), sanity_rules.COLUMNS)
    return read_sanity(path)


def test_the_table_comes_back_and_a_changed_threshold_is_refused(tmp_path):
    table = table_of(made(), tmp_path / "sanity.csv")
    assert [value for _, value, _ in verdicts(table)] == measured(made())
    assert failed(table) == []
    text = sanity_rules.table_text(table)
    assert "a-b: sanity checks on 100 test images, PGD-20 at 16/255" in text
    assert "FAILS" not in text
    lines = (tmp_path / "sanity.csv").read_text().replace(",<=,0.01,", ",<=,0.5,")
    (tmp_path / "loose.csv").write_text(lines)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "words.csv").write_text((tmp_path / "sanity.csv").read_text().replace(",<=,0.01,", ",<=,little,"))
    for name, message in {
        "loose": "written with other checks or thresholds", "other": "it lacks run_id", "empty": "cannot read",
        "words": "column 'threshold'", "missing": "cannot read",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=message):
            read_sanity(tmp_path / f"{name}.csv")


def test_the_figure_shows_the_tables_numbers_and_the_worst_class(tmp_path):
    errors = {("pgd", EPSILON): flags(*range(11, 91, 2))}  # all of class 1
    table = table_of(made(errors=errors), tmp_path / "sanity.csv")
    figure = sanity_figure(table, "base")
    left, right = figure.axes
    assert figure.get_suptitle().startswith("base, seed ")
    assert sanity_figure(table).get_suptitle().startswith(f"{table['method'].iloc[0]}, seed ")
    lines = {line.get_label(): line for line in left.lines}
    assert lines["all images"].get_ydata().tolist() == pytest.approx([0.1, 0.15, 0.2, 0.3, 0.5, 0.8, 1, 1, 1])
    assert lines["worst class: Bag"].get_ydata()[4] == pytest.approx((5 + 40) / 50)
    assert [text.get_text() for text in left.get_xticklabels()][:5] == ["0", "2", "4", "8", "16"]
    assert {len(line.get_xdata()) for line in right.lines} == {17}
    assert right.lines[0].get_xdata()[-1] == pytest.approx(16)


def test_the_report_shows_checks_and_is_as_before_without_them(tmp_path, monkeypatch):
    runs = write_study(tmp_path / "runs")
    monkeypatch.setattr(report, "_FIGURES", ())
    page = tmp_path / "docs" / "sanity.md"
    page.parent.mkdir()
    page.write_text("<!-- table: sanity -->\n<!-- end -->\n", encoding="utf-8")

    def written():
        assert report.main([f"runs={runs}", f"out={tmp_path / 'out'}", f"docs={page.parent}"]) == 0
        return (tmp_path / "out" / "report.html").read_text(encoding="utf-8")

    without = written()
    assert "Is the robustness real?" not in without
    assert "No checkpoint has been checked yet" in page.read_text(encoding="utf-8")
    for name, evidence in {"good": made(), "bad": made(**broken("transfer", 41))}.items():
        (runs / "sanity" / name).mkdir(parents=True)
        table_of(evidence, runs / "sanity" / name / "sanity.csv")
    shown = written()
    assert '<h2 id="checks-title">Is the robustness real?</h2>' in shown
    assert "-20.0 points ✓" in shown
    assert "1.0 points ✗" in shown
    assert shown.count('id="figure-sanity-') == 2
    assert "| -20.0 points ✓ |" in page.read_text(encoding="utf-8")
    assert "1.0 points ✗ |" in page.read_text(encoding="utf-8")


def test_a_check_that_was_not_run_says_so_in_the_report(tmp_path):
    evidence = made()
    errors = {key: value for key, value in evidence.is_attacked_error.items() if key[0] != "transfer"}
    table_of(dataclasses.replace(evidence, is_attacked_error=errors), tmp_path / "sanity.csv")
    (grid,) = sanity_grids([tmp_path / "sanity.csv"])
    (row,) = [row for row in grid.rows if row[0].text.startswith("transfer")]
    assert row[2].text == "not run"
    assert "| not run |" in sanity_table([tmp_path / "sanity.csv"])

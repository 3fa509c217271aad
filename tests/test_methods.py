"""Methods of other papers on the same seam: formulas against loops, and what every method must keep to."""

import functools
import itertools
import math
import re
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frl_repro.basics.errors import UserError
from frl_repro.commands.jobs import check_command_line
from frl_repro.results.tables.reading import read_classwise
from frl_repro.runs import experiment
from frl_repro.settings.config import RunConfig
from frl_repro.settings.parse import parse
from frl_repro.training import fitting, objectives
from frl_repro.training.frl import ClassStats, Method, Weights, dafa, method_class
from frl_repro.training.frl.cfol import Cfol
from frl_repro.training.frl.cfol import Settings as CfolSettings
from frl_repro.training.frl.class_stats import Predictions
from frl_repro.training.frl.dafa import Dafa, similarity
from frl_repro.training.frl.dafa import Settings as DafaSettings
from frl_repro.training.frl.faal import worst_shares
from frl_repro.training.steering import Steering
from support import composed, new_method, stats_of, step_loss, when


def probabilities(num_classes, seed=0):
    """Mean softmax outputs, [true class, class]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(torch.randn(num_classes, num_classes, dtype=torch.float64, generator=generator), -1)


# --- DAFA -----------------------------------------------------------------------------------------------------------


def dafa_by_loops(P, strength):  # noqa: N803
    K = len(P)
    factors = []
    for i in range(K):
        total = 0.0
        for j in range(K):
            if j != i:
                total += P[i][j] * P[j][j] if P[i][i] < P[j][j] else -P[j][i] * P[i][i]
        factors.append(1 + strength * total)
    return factors


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_dafas_factors_are_the_papers_double_loop_and_sum_to_the_number_of_classes(num_classes):
    P = probabilities(num_classes)
    found = 1 + 1.5 * similarity(P)
    assert found.tolist() == pytest.approx(dafa_by_loops(P.tolist(), 1.5), rel=1e-12)
    assert float(found.sum()) == pytest.approx(num_classes, rel=1e-12)
    hard, easy = int(P.diagonal().argmin()), int(P.diagonal().argmax())
    assert found[hard] > 1 > found[easy]


def test_dafa_waits_for_its_epoch_sets_its_factors_once_and_clips_them(monkeypatch):
    said = []
    monkeypatch.setattr(dafa.LOGGER, "info", lambda text, *values: said.append(text % values))
    method = Dafa(num_runs=1, num_classes=3)
    method.configure([DafaSettings(name="dafa", strength=5.0, start_epoch=2, smallest=0.1)])
    method.state = method.start()
    method.objective = "split"
    logits, y = 3 * torch.randn(1, 60, 3, generator=torch.Generator().manual_seed(1)), torch.arange(60).view(1, 60) % 3
    stats = stats_of(logits, y)
    method.see_epoch(stats, when(0))
    assert torch.equal(method.plan(when(1)).radius, torch.ones(1, 3, dtype=torch.float64))
    method.see_epoch(stats, when(1))
    P = [[float(torch.softmax(logits[0, c::3].double(), -1)[:, j].mean()) for j in range(3)] for c in range(3)]
    expected = [max(0.1, factor) for factor in dafa_by_loops(P, 5.0)]
    assert min(expected) == 0.1
    assert method.plan(when(2)).radius[0].tolist() == pytest.approx(expected, rel=1e-6)
    assert said == ["frl=dafa: factors below 0.1 were set to it"]
    before = method.state["factor"].clone()
    method.see_epoch(stats_of(-logits, y), when(2))
    assert torch.equal(method.state["factor"], before)
    weights = method.weigh(when(2))
    assert torch.equal(weights.nat, before)
    assert torch.equal(weights.bndy, torch.ones_like(before))


# --- FAAL -----------------------------------------------------------------------------------------------------------

SCORES = st.lists(st.floats(-50, 50), min_size=2, max_size=8)


@given(SCORES, st.floats(0.01, 2))
def test_faals_weights_meet_the_constraint_and_no_others_do_better(scores, ball):
    score = torch.tensor(scores, dtype=torch.float64)
    K = len(scores)
    q = worst_shares(score, torch.tensor([ball], dtype=torch.float64))
    assert float(q.sum()) == pytest.approx(1)
    divergence = -sum(math.log(K * share) for share in q.tolist()) / K
    spread = max(scores) - min(scores)
    assert divergence <= ball * (1 + 1e-6)
    if spread > 1e-6:
        assert divergence == pytest.approx(ball, rel=1e-6)
    generator = torch.Generator().manual_seed(0)
    others = torch.distributions.Dirichlet(torch.ones(K, dtype=torch.float64))
    torch.manual_seed(0)
    for other in (others.sample(), torch.softmax(torch.randn(K, generator=generator, dtype=torch.float64), 0)):
        mixed = other
        while -float((K * mixed).log().mean()) > ball:  # inside the ball: nearer to equal shares
            mixed = (mixed + 1 / K) / 2
        assert float((mixed * score).sum()) <= float((q * score).sum()) + 1e-6 * max(1.0, spread)


def test_faal_weighs_the_classes_of_the_batch_by_their_margins():
    faal = method_class("faal")(num_runs=1, num_classes=3)
    faal.configure([type("S", (), {"ball": 0.5})()])
    faal.state = faal.start()
    logits, y = torch.zeros(1, 6, 3), torch.tensor([[0, 0, 0, 1, 1, 1]])
    logits[0, :3, 1] = 4.0  # class 0 wrong with confidence
    logits[0, 3:, 1] = 4.0  # class 1 right
    stats = stats_of(logits, y)
    margin = math.exp(4) / (math.exp(4) + 2) - 1 / (math.exp(4) + 2)
    assert stats.margin[0].tolist() == pytest.approx([3 * margin, -3 * margin, 0.0])
    faal.see_batch(stats, when(0))
    weight = faal.weigh(when(0)).nat[0]
    assert weight[0] > weight[2] > weight[1]
    assert float(weight.sum()) == pytest.approx(3)


# --- CFOL -----------------------------------------------------------------------------------------------------------


def cfol(acts_by, eta=0.1, gamma=0.5):
    method = Cfol(num_runs=1, num_classes=3)
    method.configure([CfolSettings(name="cfol", eta=eta, gamma=gamma, acts_by=acts_by)])
    method.state = method.start()
    return method


def test_cfol_raises_wrong_classes_after_the_step_that_saw_them():
    method = cfol("weigh")
    method.plan(when(0))
    logits, y = torch.zeros(1, 4, 3), torch.tensor([[0, 0, 1, 2]])
    logits[0, :, 2] = 1.0  # both of class 0 and the one of class 1 are wrong
    method.see_batch(stats_of(logits, y), when(0))
    assert method.weigh(when(0)).nat[0].tolist() == [1, 1, 1]  # this step's losses
    assert method.state["gain"][0].tolist() == pytest.approx([0.1 * 2 * 3, 0.1 * 1 * 3, 0.0])
    method.plan(when(0))
    power = [math.exp(0.6), math.exp(0.3), 1.0]
    expected = [3 * (0.5 / 3 + 0.5 * p / sum(power)) for p in power]
    assert method.weigh(when(0)).nat[0].tolist() == pytest.approx(expected)
    assert method.weigh(when(0)).bndy[0].tolist() == pytest.approx(expected)


def test_a_published_step_of_cfol_moves_a_class_and_the_other_hardly_does():
    """200 epochs of CIFAR-10 in which one class errs in 4,000 of 5,000 images and the others in 2,000."""
    shares = []
    for eta in (1e-7, 5e-6):
        method = new_method("cfol", num_classes=10, eta=eta, gamma=0.5)
        wrong = torch.full((1, 10), 2000.0, dtype=torch.float64)
        wrong[0, 0] = 4000
        for epoch in range(200):
            method.plan(when(epoch))
            # An update an epoch, which is equal in expectation: as many images of a class as q has of all 50,000.
            seen = wrong / 5000 * 50_000 * method.shares()
            method.see_batch(SimpleNamespace(wrong_attacked=seen), when(epoch))
        shares.append(float(method.shares()[0, 0]))
    assert 0.1 < shares[0] < 0.13
    assert shares[1] > 0.5


def test_cfol_draws_classes_as_often_as_its_shares_say():
    from frl_repro.training.trainer import _Batches

    labels = torch.tensor([0] * 80 + [1] * 15 + [2] * 5)
    batches = _Batches(labels, 100, [torch.Generator().manual_seed(0)])
    shares = torch.tensor([[0.2, 0.3, 0.5]])
    drawn = torch.cat([labels[batches.draw(0, shares)[0]] for _ in range(200)])
    assert (torch.bincount(drawn) / len(drawn)).tolist() == pytest.approx([0.2, 0.3, 0.5], abs=0.01)
    assert sorted(batches.draw(0, None)[0].tolist()) == list(range(100))  # without shares each image once
    method = cfol("draw")
    assert torch.equal(method.plan(when(0)).draw, torch.full((1, 3), 1 / 3, dtype=torch.float64))
    assert method.weigh(when(0)).nat[0].tolist() == [1, 1, 1]


# --- what the seam promises -----------------------------------------------------------------------------------------


def test_class_sums_are_a_plain_loop_over_images_and_add_up():
    generator = torch.Generator().manual_seed(3)
    clean, attacked = torch.randn(2, 2, 7, 4, generator=generator)
    y = torch.randint(4, (2, 7), generator=generator)
    stats = ClassStats.of(clean, y, attacked, y, is_paired=True)
    for r, c in itertools.product(range(2), range(4)):
        rows = [n for n in range(7) if y[r, n] == c]
        p = [torch.softmax(clean[r, n].double(), 0) for n in rows]
        q = [torch.softmax(attacked[r, n].double(), 0) for n in rows]
        wrong = [(int(a.argmax()) != c, int(b.argmax()) != c) for a, b in zip(p, q, strict=True)]
        assert int(stats.num_clean[r, c]) == int(stats.num_attacked[r, c]) == len(rows)
        assert int(stats.wrong_clean[r, c]) == sum(a for a, _ in wrong)
        assert int(stats.wrong_attacked[r, c]) == sum(b for _, b in wrong)
        assert int(stats.wrong_either[r, c]) == sum(a or b for a, b in wrong)
        assert float(stats.ce_clean[r, c]) == pytest.approx(-sum(float(a[c].log()) for a in p))
        assert float(stats.ce_attacked[r, c]) == pytest.approx(-sum(float(b[c].log()) for b in q))
        divergence = sum(float((a * (a / b).log()).sum()) for a, b in zip(p, q, strict=True))
        assert float(stats.kl[r, c]) == pytest.approx(divergence)
        margins = [max(float(b[k]) for k in range(4) if k != c) - float(b[c]) for b in q]
        assert float(stats.margin[r, c]) == pytest.approx(sum(margins))
        for k in range(4):
            assert float(stats.probability[r, c, k]) == pytest.approx(sum(float(b[k]) for b in q))
            assert int(stats.confusion[r, c, k]) == sum(int(b.argmax()) == k for b in q)
    parts = [(clean[:, h], y[:, h], attacked[:, h], y[:, h]) for h in (slice(3), slice(3, 7))]
    halves = [ClassStats.of(*part, is_paired=True) for part in parts]
    runs = ClassStats.of_runs([ClassStats.of(clean[r], y[r], attacked[r], y[r], is_paired=True) for r in range(2)])
    for name in SUMS:
        torch.testing.assert_close(getattr(halves[0] + halves[1], name), getattr(stats, name))
        torch.testing.assert_close(getattr(runs, name), getattr(stats, name))
    apart = ClassStats.of(clean, y, attacked, y, is_paired=False)  # by chance of the same classes
    assert not apart.kl.any()
    assert not apart.wrong_either.any()
    assert torch.equal(apart.wrong_attacked, stats.wrong_attacked)


SUMS = [name for name, value in vars(ClassStats).items() if isinstance(value, functools.cached_property)]


def test_a_sum_is_computed_when_it_is_first_read():
    assert len(SUMS) == 11
    logits, y = torch.randn(2, 6, 3, requires_grad=True), torch.arange(12).view(2, 6) % 3
    stats = ClassStats.of(logits, y, logits, y, is_paired=True)
    assert not set(SUMS) & set(vars(stats))
    first = stats.ce_attacked
    assert set(SUMS) & set(vars(stats)) == {"ce_attacked"}
    assert stats.ce_attacked is first
    assert not first.requires_grad


class Asked(Method):
    """Counts how often it is asked for weights."""

    num = 0

    def weigh(self, when):
        self.num += 1
        return super().weigh(when)


class AskedOfBatches(Asked):
    sees_batches = True


@pytest.mark.parametrize(("kind", "num"), [(Asked, 2), (AskedOfBatches, 6)])
def test_weights_are_asked_for_once_a_step_and_again_for_each_part_that_a_method_has_seen(kind, num):
    steering = Steering(kind(num_runs=1, num_classes=3), num_epochs=[1])
    steering.begin_epoch([0])
    logits, y = torch.randn(1, 6, 3), torch.arange(6).view(1, 6) % 3
    for step in range(2):
        at = steering.when(step, 2)
        steering.plan(at)
        for _ in range(3):
            steering.see_batch(Predictions(logits, y, logits, y, is_paired=True), at)
            assert steering.weigh(at).nat.tolist() == [[1, 1, 1]]
    assert steering.method.num == num


def test_weights_that_count_as_they_are_divide_by_the_number_of_images():
    x, y = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 1, 0])
    weights = Weights(torch.tensor([3.0, 1.0, 0.5]), torch.tensor([1.0, 2.0, 1.0]))
    matrix = torch.eye(3)

    def negated(x, y, *, factor):
        assert factor is None
        return -x

    settings = {"forward": lambda x: x @ matrix, "attack": negated, "weights": weights}
    _, found = step_loss(objectives.Paired(), x, y, **settings, scale="images")
    expected = 0.0
    for n in range(5):
        expected += float(weights.nat[y[n]] * torch.nn.functional.cross_entropy(x[n], y[n]))
        expected += float(weights.bndy[y[n]] * torch.nn.functional.cross_entropy(-x[n], y[n]))
    assert float(found) == pytest.approx(expected / 5, rel=1e-6)
    pair = torch.arange(9.0).view(3, 3)
    _, more = step_loss(
        objectives.Paired(), x, y, **{**settings, "weights": weights._replace(pair=pair)}, scale="images"
    )
    for n in range(5):
        expected += float(pair[y[n], (-x[n]).argmax()] * torch.nn.functional.cross_entropy(-x[n], y[n]))
    assert float(more) == pytest.approx(expected / 5, rel=1e-6)


def test_a_method_that_overrides_nothing_treats_every_class_alike():
    method = Method(num_runs=2, num_classes=3)
    assert method.plan(when(0, 2)).radius is None
    assert torch.equal(method.weigh(when(0, 2)).nat, torch.ones(2, 3, dtype=torch.float64))
    assert method.accepts(None, when(0, 2)).tolist() == [True, True]


# --- in a run -------------------------------------------------------------------------------------------------------

OWN = {
    "dafa": {"frl__strength": 1.5, "frl__start_epoch": 1},
    "faal": {"frl__ball": 0.3},
    "cfol": {"frl__eta": 0.01},
    "cfol weigh": {"frl__eta": 0.01, "frl__acts_by": "weigh"},
    "wat": {"frl__eta": 0.3, "frl__num_steps": 2},
    "group_dro": {"frl__eta": 0.1},
    "variance": {"frl__strength": 0.5},
    "codat": {"frl__rho": 0.5},
    "codat epoch": {"frl__rho": 0.5, "frl__update_every": "epoch"},
    "csr": {"frl__mix": 0.3},
    "robust_lt": {"dataset__imbalance": "exponential", "dataset__imbalance_ratio": 5.0, "frl__warmup_share": 0.5},
    "cfa": {"frl__average_start": 1, "frl__average_above": 0.0},
    "bat": {},
    "head_norm": {},
    "logit_bias": {},
}
TREATS_CLASSES_ALIKE = ("bat", "head_norm", "logit_bias")
OWN_COLUMN = {
    "dafa": "dafa_factor", "cfol": "cfol_share", "wat": "wat_expert", "group_dro": "group_dro_share",
    "codat": "codat_share", "csr": "csr_pair", "robust_lt": "margin",
    "cfa": "cfa_beta",
}  # fmt: skip
WHERE = [
    *itertools.product(
        ("dafa", "faal", "cfol", "cfol weigh", "cfa", "bat", "head_norm", "logit_bias"), ("report", "scratch")
    ),
    ("dafa", "paper"), ("cfa", "paper"), ("bat", "paper"),
    ("faal", "paper"), ("wat", "paper"), ("wat", "scratch"), ("group_dro", "scratch"), ("group_dro", "report"),
    ("variance", "paper"), ("codat", "report"), ("codat epoch", "scratch"), ("csr", "paper"), ("csr", "scratch"),
    ("robust_lt", "scratch"), ("robust_lt", "paper"),
]  # fmt: skip


def settings_of(folder, name, recipe, **changes):
    """Three epochs of a method, from a base model or from scratch."""
    values = {
        "dataset": "synthetic", "dataset__num_classes": 3, "dataset__num_train": 120, "dataset__num_test": 45,
        "dataset__validation_fraction": 0.25, "trainer__batch_size": 30, "attack__num_steps": 2,
        "evaluation__num_steps": 2, "backend": "torch", "frl": name.split(maxsplit=1)[0], "recipe": recipe,
        "output_dir": str(folder), "trainer__num_epochs": 3 if recipe == "scratch" else 1, **OWN[name],
    }  # fmt: skip
    if recipe != "scratch":
        values |= {
            "retrain__trainer__num_epochs": 3,
            "retrain__trainer__batch_size": 30,
            "retrain__attack__num_steps": 2,
        }
    return parse(composed(**values | changes), RunConfig)


@pytest.mark.parametrize(("name", "recipe"), WHERE)
def test_a_method_that_is_stopped_continues_to_the_same_bytes(name, recipe, tmp_path, monkeypatch):
    straight = experiment.run(settings_of(tmp_path / "straight", name, recipe))
    end_epoch, num = fitting._Training.end_epoch, itertools.count()

    def stop(self, *arguments, **settings):
        if self.run.folder.parent.name == "stopped" and next(num) == 1:
            raise KeyboardInterrupt
        end_epoch(self, *arguments, **settings)

    stopped = settings_of(tmp_path / "stopped", name, recipe, base_dir=str(tmp_path / "straight" / "bases"))
    with monkeypatch.context() as patch:
        patch.setattr(fitting._Training, "end_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(stopped)
    folder = experiment.run(stopped)
    assert next(num) > 1
    for file in ("classwise.csv", "history.csv", "policy.csv", "model.safetensors"):
        assert (folder / file).read_bytes() == (straight / file).read_bytes(), file
    rows = pd.read_csv(folder / "policy.csv")
    assert rows["epoch"].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert rows["natural_error"].isna().all() == (method_class(name.split(maxsplit=1)[0]).sees_validation is None)
    own = OWN_COLUMN.get(name.split(maxsplit=1)[0])
    last = rows[rows["epoch"] == 3]
    changed = last["weight_nat"] if own is None else last[own]
    assert (changed.nunique() > 1) is (name not in TREATS_CLASSES_ALIKE)
    before = {row["epoch"] for row in read_classwise([folder / "classwise.csv"]).to_dict("records")} & {0}
    assert before == (set() if recipe == "scratch" else {0})


@pytest.mark.parametrize(("name", "key", "values"), [
    ("dafa", "frl__strength", (0.5, 2.0)), ("faal", "frl__ball", (0.1, 1.0)), ("cfol", "frl__eta", (0.001, 0.1)),
    ("wat", "frl__eta", (0.1, 1.0)), ("group_dro", "frl__eta", (0.01, 0.3)), ("variance", "frl__strength", (0.1, 1.0)),
    ("codat", "frl__rho", (0.1, 1.0)), ("csr", "frl__mix", (0.1, 0.6)), ("robust_lt", "frl__strength", (0.2, 0.6)),
    ("cfa", "frl__radius_offset", (0.1, 0.9)), ("bat", "trainer__learning_rate", (1e-3, 3e-3)),
])  # fmt: skip
def test_runs_that_differ_in_a_methods_number_train_fused_as_they_do_alone(name, key, values, tmp_path):
    together = [settings_of(tmp_path / "together", name, "scratch", **{key: value}) for value in values]
    assert together[0].shared == together[1].shared
    assert together[0].run_id != together[1].run_id
    alone = [settings_of(tmp_path / "alone", name, "scratch", **{key: value}) for value in values]
    folders = experiment.run_all(together)
    for one, folder in zip(alone, folders, strict=True):
        own = experiment.run(one)
        ours, theirs = (pd.read_csv(path / "policy.csv").iloc[:, -6:] for path in (folder, own))
        pd.testing.assert_frame_equal(ours, theirs, rtol=1e-3, check_exact=False)


@pytest.mark.parametrize(("line", "message"), [
    ("frl=cfol recipe=scratch retrain.trainer.num_epochs=1", "recipe=scratch: trainer.num_epochs is what it trains"),
    ("frl=bat recipe=paper retrain.beta=3", "retrain.beta has no effect with frl=bat recipe=paper: its own is frl"),
    ("frl=bat retrain.beta=3", "retrain.beta has no effect with frl=bat recipe=report: its own is frl.beta"),
    ("frl=cfol frl.strength=1", "frl.strength has no effect with frl=cfol recipe=report; it belongs to frl=dafa"),
])  # fmt: skip
def test_a_setting_of_another_training_is_answered_with_the_one_that_counts(line, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_command_line(line.split(), "config")


@pytest.mark.parametrize(("changes", "message"), [
    ({"recipe": "scratch", "attack": "none"}, "frl=dafa trains adversarially: attack=none attacks nothing"),
    ({"frl": "bat", "recipe": "scratch", "attack": "none"}, "frl=bat trains adversarially: attack=none attacks"),
    ({"recipe": "scratch", "init_from": "x"}, "init_from has no effect with recipe=scratch"),
    ({"frl": "reweight", "recipe": "scratch"}, "frl=reweight has no recipe=scratch; it has recipe=paper"),
    ({"frl__strength": -1}, "frl.strength=-1: must lie in"),
    ({"frl__eta": 1}, "unknown key frl.eta; known: name, strength, start_epoch, smallest"),
])  # fmt: skip
def test_what_a_method_cannot_do_is_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse(composed(**{"frl": "dafa", **changes}), RunConfig)


@pytest.mark.parametrize(("name", "changes", "num_epochs", "remark"), [
    ("dafa", {"frl__start_epoch": 10}, 10, "frl=dafa: classes differ after epoch 10, but training has 10"),
    ("dafa", {"frl__start_epoch": 10}, 11, None),
    ("cfa", {}, 1, "frl=cfa: radii move after epoch 1 and the average begins after epoch 3, but training has 1"),
    ("cfa", {}, 3, "frl=cfa: the average begins after epoch 3, but training has 3"),
    ("cfa", {}, 4, None),
    ("wat", {}, 1, None),
])  # fmt: skip
def test_a_method_that_never_acts_says_so(name, changes, num_epochs, remark):
    config = parse(composed(frl=name, **changes), RunConfig)
    assert config.frl.remark(num_epochs, averages=True) == remark


def test_what_the_classes_rule_out_is_refused_before_a_base_is_trained(tmp_path):
    settings = {"dataset": "synthetic", "dataset__num_train": 60, "dataset__num_test": 30, "output_dir": str(tmp_path)}
    config = parse(composed(frl="variance", frl__slots=2, **settings), RunConfig)
    with pytest.raises(UserError, match=r"frl\.slots=2: there are \d+ classes"):
        experiment.run(config)
    assert not list(tmp_path.rglob("*.json"))

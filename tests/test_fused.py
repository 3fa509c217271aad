"""Fused runs: each gets what it would get alone."""

import dataclasses
import json
import logging
import os
import resource
import shutil
import threading

import pandas
import pytest
import torch

import native_lenet5 as native
from frl_repro.attacks import pgd
from frl_repro.basics import streams
from frl_repro.basics.errors import UserError
from frl_repro.data.synthetic import load_synthetic
from frl_repro.evaluation.class_errors import ClassErrors
from frl_repro.models import build_model, fuse
from frl_repro.models.compute.backends import TORCH
from frl_repro.models.compute.native import NativeUnavailable
from frl_repro.runs import experiment, fused
from frl_repro.training import fitting, objectives, report_code
from frl_repro.training.frl import Rules, Weights
from frl_repro.training.steering import RunErrors
from frl_repro.training.trainer import Diverged, train_epoch
from native_lenet5 import NATIVE
from support import POLICIES, TINY, call, contents, new_policy, step_loss, tiny_retraining

NUM_RUNS = 3


@pytest.fixture(scope="module")
def compiled():
    """Equal bytes are promised of native code."""
    try:
        native.engine()
    except NativeUnavailable as reason:
        pytest.skip(str(reason))


def models():
    return [build_model("lenet5", num_classes=3, image_shape=(1, 32, 32), seed=seed) for seed in range(NUM_RUNS)]


def images(num, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(num, 1, 32, 32, generator=generator)
    return x, torch.randint(3, (num,), generator=generator)


# ---------------------------------------------------------------------------------------------------------------
# The parts


def test_a_fused_model_answers_block_by_block_and_hands_out_gradients():
    alone, together = models(), models()
    x, y = images(NUM_RUNS * 5)
    fused = fuse(together)
    for r, model in enumerate(alone):
        block = slice(5 * r, 5 * r + 5)
        torch.testing.assert_close(fused(x[block].repeat(NUM_RUNS, 1, 1, 1))[block], model(x[block]))
        torch.nn.functional.cross_entropy(model(x[block]), y[block]).backward()
    torch.nn.functional.cross_entropy(fused(x), y, reduction="none").view(NUM_RUNS, 5).mean(1).sum().backward()
    for a, b in zip(alone, together, strict=True):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-7)
    torch.optim.SGD(together[1].parameters(), lr=1.0).step()  # moves one slice of them
    with torch.no_grad():
        now = fused(x)
        torch.testing.assert_close(now[:5], alone[0](x[:5]))
        torch.testing.assert_close(now[5:10], together[1](x[5:10]))
    assert not torch.allclose(now[5:10], alone[1](x[5:10]))


def test_one_model_needs_no_fusing_and_models_with_buffers_cannot_be():
    model = models()[0]
    assert fuse([model]) is model
    with pytest.raises(ValueError, match="models with buffers cannot be fused"):
        fuse([torch.nn.BatchNorm2d(1), torch.nn.BatchNorm2d(1)])


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("block", [1, 16, 37])
def test_native_runs_in_one_call_equal_a_call_each_bit_for_bit(compiled, num_threads, block):
    own = [[p.detach().clone() for p in model.parameters()] for model in models()]
    fused = [p.detach() for p in fuse(models()).parameters()]
    x, y = images(NUM_RUNS * block)
    radius, step = torch.linspace(0.01, 0.1, len(x)), torch.full((len(x),), 0.02)
    d = torch.linspace(-1, 1, 3 * len(x)).view(len(x), 3)

    def at(b):
        return {"epsilon": radius[b], "step_size": step[b], "num_steps": 4, "num_threads": num_threads}

    calls = [
        lambda p, b: native.logits(p, x[b], num_threads=num_threads),
        lambda p, b: native.logits_and_input_gradient(p, x[b], y[b], num_threads=num_threads)[1],
        *[
            lambda p, b, early_stop=early_stop, target=target: native.pgd(
                p, x[b], target[b], start=x[b], labels=y[b], early_stop=early_stop, **at(b)
            )
            for early_stop in (False, True)
            for target in (y, torch.softmax(d, 1))
        ],
    ]  # fmt: skip
    blocks = [slice(block * r, block * (r + 1)) for r in range(NUM_RUNS)]
    for function in calls:
        alone = torch.cat([function(own[r], blocks[r]) for r in range(NUM_RUNS)])
        assert torch.equal(function(fused, slice(None)), alone)
    together = native.parameter_gradients(fused, x, d, num_threads=num_threads)
    alone = [native.parameter_gradients(own[r], x[b], d[b], num_threads=num_threads) for r, b in enumerate(blocks)]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(whole, torch.stack(parts), rtol=1e-6, atol=1e-7)  # products of matrices in torch
    with pytest.raises(ValueError, match=r"equal blocks for 3 networks, got 4 images"):
        native.logits(fused, images(4)[0], num_threads=1)


@pytest.mark.parametrize("name", ["mixed", "split", "paired", "trades", "scrambled", "by_prediction"])
def test_objectives_of_several_runs_equal_each_alone(name):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(NUM_RUNS, 4, 3, generator=generator)
    x, y = torch.rand(NUM_RUNS, 6, 4, generator=generator), torch.randint(3, (NUM_RUNS, 6), generator=generator)
    nat, bndy, radius = (0.5 + torch.rand(NUM_RUNS, 3, generator=generator) for _ in range(3))

    def objective(runs):
        generators = [torch.Generator().manual_seed(r) for r in runs]
        made = {
            "mixed": objectives.Mixed(0.5),
            "split": objectives.SplitLoss(),
            "paired": objectives.Paired(),
            "trades": objectives.Trades(beta=2.0),
            "scrambled": report_code.ScrambledPaired(generators=generators),
            "by_prediction": report_code.SplitByPrediction(),
        }[name]
        chosen = list(runs)
        return step_loss(
            made,
            x[chosen].clone(),
            y[chosen],
            forward=lambda images: images @ weight[chosen],
            attack=lambda x, _, *, factor: x + 0.1 * factor.unsqueeze(-1),
            radius=radius[chosen],
            weights=Weights(nat[chosen], bndy[chosen]),
        )

    together, whole = objective(range(NUM_RUNS))
    for r in range(NUM_RUNS):
        alone, loss = objective([r])
        torch.testing.assert_close(whole[r], loss[0])
        assert torch.equal(together.is_wrong_clean[r], alone.is_wrong_clean[0])
        assert torch.equal(together.is_wrong_attacked[r], alone.is_wrong_attacked[0])


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("weight_rule", ["softmax", "simplex"])
def test_policies_of_several_runs_equal_each_alone(name, weight_rule):
    generator = torch.Generator().manual_seed(2)
    count = torch.full((NUM_RUNS, 4), 20)
    wrong = torch.randint(10, (2, 2, NUM_RUNS, 4), generator=generator)  # updates, natural and boundary
    alphas = {key: [1.0, 2.0, 5.0] for key in POLICIES[name].required}
    taus = {"nat": [0.0, 0.05, 0.1], "bndy": [0.1, 0.05, 0.0], "rob": [0.05, 0.0, 0.1]}

    def policy(choose, shape):
        return new_policy(
            name,
            Rules(
                alpha={key: choose(values) for key, values in alphas.items()},
                tau={key: choose(values) for key, values in taus.items()},
                accumulate=True,
                weight_rule=weight_rule,
                margin_bounds=(0.5, 2.0),
            ),
            shape=shape,
        )

    together = policy(lambda values: torch.tensor(values, dtype=torch.float64).view(-1, 1), (NUM_RUNS, 4))
    alone = [policy(lambda values, r=r: values[r], (4,)) for r in range(NUM_RUNS)]
    for natural, boundary in wrong:
        errors = [ClassErrors(count[r], natural[r], boundary[r]) for r in range(NUM_RUNS)]
        together.update(RunErrors.of(errors))
        for r in range(NUM_RUNS):
            alone[r].update(errors[r])
            for answer in ("weight_nat", "weight_bndy", "margin_factor"):
                whole, own = (getattr(policy, answer)() for policy in (together, alone[r]))
                torch.testing.assert_close(whole[r], own, rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", [TORCH, NATIVE], ids=lambda backend: backend.name)
def test_losses_of_fifty_steps_agree_with_runs_alone(backend, request):
    if backend is NATIVE:
        request.getfixturevalue("compiled")
    train, _ = load_synthetic(num_classes=3, num_train=1000, num_test=3, seed=0)
    rates = [1e-3, 3e-4, 1e-3]

    def losses(runs):
        trained = models()
        optimizers = [torch.optim.Adam(trained[r].parameters(), lr=rates[r]) for r in runs]
        seen = []

        class Noting(objectives.Mixed):
            def loss(self, *arguments, **settings):
                seen.append(super().loss(*arguments, **settings))
                return seen[-1]

        def attack(model, x, y, *, factor, generator):
            assert factor is None
            return pgd(
                model, x, y, epsilon=0.1, step_size=0.05, num_steps=2, generator=generator, ascend=backend.ascend
            )

        train_epoch(
            fuse([trained[r] for r in runs]),
            train,
            update=lambda: [optimizer.step() for optimizer in optimizers],
            objective=Noting(0.5),
            attack=attack,
            forward=backend.forward,
            batch_size=20,
            order_generators=[streams.generator(r, "order") for r in runs],
            attack_generators=[streams.generator(r, "attack") for r in runs],
        )
        return torch.stack(seen).detach()

    together = losses(range(NUM_RUNS))
    alone = torch.cat([losses([r]) for r in range(NUM_RUNS)], 1)
    assert together.shape == (50, NUM_RUNS)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=0)


# ---------------------------------------------------------------------------------------------------------------
# Whole runs

VARIANTS = [
    {"alpha__nat": 1},
    {"alpha__nat": 5, "retrain__trainer__num_epochs": 3},
    {"alpha__bndy": 3, "seed": 1},
    {
        "retrain__trainer__learning_rate": 1e-3,
        "retrain__trainer__ema_decay": 0.9,
        "retrain__trainer__weight_decay": 0.1,
    },
]


@pytest.fixture(scope="module")
def bases(compiled, tmp_path_factory):
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("bases")


def variants(folder, bases, **changes):
    return [
        tiny_retraining(folder, base_dir=str(bases), **{"backend": "native", **variant, **changes})
        for variant in VARIANTS
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, bases):
    return [experiment.run(config) for config in variants(tmp_path_factory.mktemp("alone"), bases)]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_fused_runs_write_the_bytes_of_runs_alone(alone, bases, tmp_path, caplog):
    """Other alphas, seeds, learning rates, numbers of epochs; fused bases, too."""
    caplog.set_level(logging.INFO, "frl_repro")
    own_bases = tmp_path / "bases"
    folders = experiment.run_all(variants(tmp_path / "runs", own_bases))
    assert "4 fused runs" in caplog.text
    assert "2 fused runs" in caplog.text
    assert sorted(path.name for path in own_bases.iterdir()) == sorted(path.name for path in bases.iterdir())
    for together, separate in zip(folders, alone, strict=True):
        assert together.name == separate.name
        assert contents(together) == contents(separate)
        assert (
            json.loads((together / "done.json").read_text())["sha256"].keys()
            == json.loads((separate / "done.json").read_text())["sha256"].keys()
        )


def test_with_pytorch_fused_runs_agree_within_rounding(tmp_path):
    bases = tmp_path / "bases"
    together = experiment.run_all(variants(tmp_path / "together", bases, backend="torch"))
    separate = [experiment.run(config) for config in variants(tmp_path / "alone", bases, backend="torch")]
    for a, b in zip(together, separate, strict=True):
        assert a.name == b.name
        losses = [pandas.read_csv(folder / "history.csv")["train_loss"].tolist() for folder in (a, b)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_killed_between_two_runs_they_continue_to_the_same_bytes(alone, bases, tmp_path, monkeypatch):
    """The process dies after two of four runs have saved the epoch: the others repeat it, fused again."""
    save, saved = fitting.checkpoints.save_state, []

    def save_and_stop(path, state):
        save(path, state)
        saved.append(path)
        if len(saved) == 6:
            raise KeyboardInterrupt

    configs = variants(tmp_path, bases)
    with monkeypatch.context() as patched:
        patched.setattr(fitting.checkpoints, "save_state", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            experiment.run_all(configs)
    epochs = [fitting.checkpoints.load_state(config.folder / "state.pt")["epoch"] for config in configs]
    assert sorted(epochs) == [1, 1, 2, 2]
    for folder, separate in zip(experiment.run_all(configs), alone, strict=True):
        assert contents(folder) == contents(separate)


def test_a_diverging_run_fails_alone_and_a_mistaken_one_too(alone, bases, tmp_path):
    configs = variants(tmp_path, bases)
    configs[1] = tiny_retraining(tmp_path, base_dir=str(bases), backend="native", retrain__trainer__learning_rate=1e30)
    configs[3] = tiny_retraining(tmp_path, backend="native", init_from="nowhere.pt")
    first, diverged, third, mistaken = experiment.run_all(configs)
    assert contents(first) == contents(alone[0])
    assert contents(third) == contents(alone[2])
    assert isinstance(diverged, UserError)
    assert "training diverged: " in str(diverged)
    assert "of epoch 1; last good state: none yet" in str(diverged)
    assert not (configs[1].folder / "done.json").exists()
    assert isinstance(mistaken, UserError)
    assert "init_from=nowhere.pt: no such file" in str(mistaken)


def test_trouble_with_one_runs_files_stops_no_other(alone, bases, tmp_path):
    configs = variants(tmp_path, bases)
    configs[0].folder.mkdir()
    (configs[0].folder / "notes.txt").write_text("not a run")
    configs[1].folder.write_text("a file where the folder goes")
    configs[2].folder.mkdir()
    shutil.copy(alone[2] / "run.json", configs[2].folder)
    (configs[2].folder / "state.pt").write_bytes(b"damaged")
    occupied, blocked, damaged, last = experiment.run_all(configs)
    assert "holds files that are no run" in str(occupied)
    assert "is a file, not a folder" in str(blocked)
    assert "is not a readable training state" in str(damaged)
    assert contents(last) == contents(alone[3])


def test_a_mistake_in_the_program_leaves_finished_runs_and_other_groups_alone(bases, tmp_path, monkeypatch):
    fit, first = experiment.fit, tiny_retraining(tmp_path, base_dir=str(bases), backend="native")
    together = variants(tmp_path, bases)

    def breaks(benches, **settings):
        if len(benches) == 1:
            yield from fit(benches, **settings)
            return
        ended = fit(benches, **settings)
        yield next(ended)
        raise RuntimeError("out of something")

    monkeypatch.setattr(experiment, "fit", breaks)
    other = dataclasses.replace(first, keys=dataclasses.replace(first.keys, num_threads=2))
    outcomes = experiment.run_all([*together, other])
    assert sum(isinstance(outcome, RuntimeError) for outcome in outcomes) == 3
    finished = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
    assert len(finished) == 2
    assert all((folder / "done.json").exists() for folder in finished)


def test_finished_runs_are_skipped_and_equal_jobs_are_one(alone, bases, caplog):
    caplog.set_level(logging.INFO, "frl_repro")
    configs = variants(alone[0].parent, bases)
    stamps = [(folder / "done.json").stat().st_mtime_ns for folder in alone]
    assert experiment.run_all([*configs, configs[0]]) == [*alone, alone[0]]
    assert [(folder / "done.json").stat().st_mtime_ns for folder in alone] == stamps
    assert "fused runs" not in caplog.text


def test_runs_that_differ_in_more_than_per_run_settings_train_one_after_the_other(bases, tmp_path, caplog):
    caplog.set_level(logging.INFO, "frl_repro")
    ours = variants(tmp_path, bases)
    other = [tiny_retraining(tmp_path, retrain__trainer__batch_size=40), tiny_retraining(tmp_path, "remargin")]
    groups = fused.grouped([ours[0], other[0], *ours[1:], other[1]])
    assert groups == [ours, [other[0]], [other[1]]]
    assert (
        "6 runs in 3 groups, one after the other: they differ in alpha.bndy, alpha.margin, alpha.nat, ..."
        in caplog.text
    )


def test_two_threads_share_the_runs_out_and_write_the_same_bytes(alone, bases, tmp_path, two_threads, caplog):
    """Each thread has two of four runs, and one run is mistaken; a line an epoch of each thread says whose it is."""
    caplog.set_level(logging.INFO, "frl_repro")
    configs = variants(tmp_path, bases)
    configs[3] = tiny_retraining(tmp_path, backend="native", init_from="nowhere.pt")
    *folders, mistaken = experiment.run_all(configs)
    assert "init_from=nowhere.pt: no such file" in str(mistaken)
    assert "4 fused runs, 2 at a time on each of 2 threads" in caplog.text
    epochs = [message for message in caplog.messages if "epoch " in message and "loss" in message]
    of_two = [message for message in epochs if message.startswith("epoch ") and "of 2 runs  loss " in message]
    of_one = [message for message in epochs if any(message.startswith(f"{folder.name}  epoch") for folder in folders)]
    assert (len(of_two), len(of_one), len(epochs)) == (2, 3, 5)  # one of the two goes on for an epoch by itself
    for together, separate in zip(folders, alone, strict=False):
        assert contents(together) == contents(separate)


def test_runs_that_cannot_be_fused_stay_on_one_thread(two_threads, bases, tmp_path):
    callers = []

    def work(part):
        callers.append((threading.current_thread() is threading.main_thread(), len(part)))

    configs = variants(tmp_path, bases)
    fused.share_out(configs, work, at_once=1, device=torch.device("cpu"))
    assert callers == [(True, 1)] * 4
    callers.clear()
    fused.share_out(configs, work, at_once=3, device=torch.device("cpu"))
    assert callers == [(False, 1)] * 4
    callers.clear()
    fused.share_out(configs[:3], work, at_once=100, device=torch.device("cpu"))
    assert sorted(callers) == [(False, 1), (False, 2)]


def test_runs_that_do_not_fit_into_memory_at_once_train_in_parts(alone, bases, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "frl_repro")
    config = variants(tmp_path, bases)[0]
    model = models()[0]
    enough = next(free for free in range(0, 2**26, 2**16) if _at_once(monkeypatch, model, config, free) == 2)
    monkeypatch.setattr(fused, "_free_memory", lambda _: enough)
    folders = experiment.run_all(variants(tmp_path, bases))
    assert caplog.text.count("4 fused runs, 2 at a time") == 1
    assert [json.loads((folder / "run.json").read_text())["num_side_by_side"] for folder in folders] == [2] * 4
    for together, separate in zip(folders, alone, strict=True):
        assert contents(together) == contents(separate)
    assert fused.runs_at_once(torch.nn.BatchNorm2d(1), config, (1, 32, 32), torch.device("cpu")) == 1


def _at_once(monkeypatch, model, config, free):
    with monkeypatch.context() as patched:
        patched.setattr(fused, "_free_memory", lambda _: free)
        return fused.runs_at_once(model, config, (1, 32, 32), torch.device("cpu"))


@pytest.mark.parametrize(("num_files", "most"), [(0, 1), (9, 2), (400, 100)])
def test_no_more_runs_are_fused_than_files_may_be_open(num_files, most, bases, tmp_path, monkeypatch):
    limit = len(os.listdir("/dev/fd")) + 32 + num_files  # noqa: PTH208 (names are numbers, not paths)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    config = variants(tmp_path, bases)[0]
    assert _at_once(monkeypatch, models()[0], config, 2**40) == most


def test_epochs_end_early_only_when_every_run_has_diverged():
    train, _ = load_synthetic(num_classes=3, num_train=240, num_test=3, seed=0)
    broken, sound = models()[:2]
    with torch.no_grad():
        broken.fc2.bias.fill_(float("nan"))
    optimizer = torch.optim.SGD(sound.parameters(), lr=1e-3)
    outcome = train_epoch(
        fuse([broken, sound]),
        train,
        update=optimizer.step,
        objective=objectives.Mixed(0),
        attack=None,
        forward=TORCH.forward,
        batch_size=30,
        order_generators=[streams.generator(r, "order") for r in range(2)],
        attack_generators=[streams.generator(r, "attack") for r in range(2)],
    )
    assert outcome[0] == Diverged("the loss is nan at step 1")
    assert dataclasses.asdict(outcome[1])["num_steps"] == 8


def test_the_fused_launcher_does_a_sweep_in_one_process_and_reports_each_failed_job(monkeypatch, capsys, in_tmp):
    arguments = ["-m", "seed=0,1", "trainer.learning_rate=1e-3,1e+37", "trainer.batch_size=30", "hydra/launcher=fused"]
    arguments += TINY
    assert call(monkeypatch, *arguments) == 1
    out, errors = capsys.readouterr()
    assert "4 fused runs" in out
    assert "2 of 4 jobs failed:" in errors
    assert "Traceback" not in errors + out
    failed = json.loads((in_tmp / "outputs" / "failed.json").read_text())
    assert sorted(entry["job"].split()[:2] for entry in failed) == [
        [f"seed={seed}", "trainer.learning_rate=1e+37"] for seed in (0, 1)
    ]
    assert len(list((in_tmp / "outputs").glob("*/done.json"))) == 2
    assert [path.name for path in in_tmp.iterdir()] == ["outputs"]
    # Two runs cannot share a folder, nor be told apart by one that is missing.
    assert call(monkeypatch, "-m", "seed=0,1", "run_dir=here", "hydra/launcher=fused", *TINY) == 1
    assert "holds another run" in capsys.readouterr().err

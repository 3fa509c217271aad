"""The native LeNet-5 against float64 autograd, a plain PGD loop, and machines without a usable compiler."""

import errno
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, cross_entropy, linear, one_hot, softmax

import native_lenet5 as lenet5
from frl_repro.basics.atomic import SECONDS_IN_USE
from frl_repro.models import LeNet5
from frl_repro.models.compute.backends import TORCH, choose_backend
from frl_repro.models.compute.native import NativeUnavailable, build
from frl_repro.models.compute.native import engine as engine_module
from support import Other

MAX_BATCH = 40
TOLERANCE = 1e-4  # relative to the largest entry
TINY_SOURCE = 'extern "C" int answer() { return 42; }\n'


def make_parameters(num_classes: int, scale: float = 1.0, seed: int = 0) -> list[Tensor]:
    """Torch's default initialisation times `scale`; 3 gives weights and saturation like a trained network's."""
    generator = torch.Generator().manual_seed(seed)
    layers = [
        ((6, 1, 5, 5), 25),
        ((16, 6, 5, 5), 150),
        ((120, 16, 5, 5), 400),
        ((84, 120), 120),
        ((num_classes, 84), 84),
    ]
    parameters = []
    for shape, fan_in in layers:
        for size in (shape, shape[:1]):
            parameters.append((torch.rand(size, generator=generator) * 2 - 1) * (scale / fan_in**0.5))
    return parameters


def make_images(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(seed))


def make_target(kind: str, count: int, num_classes: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    if kind == "labels":
        return torch.randint(num_classes, (count,), generator=generator)
    return torch.softmax(2 * torch.randn(count, num_classes, generator=generator), dim=1)


def reference_logits(parameters: list[Tensor], x: Tensor) -> Tensor:
    w1, b1, w2, b2, w3, b3, w4, b4, w5, b5 = parameters
    h = avg_pool2d(torch.tanh(conv2d(x, w1, b1)), 2)
    h = avg_pool2d(torch.tanh(conv2d(h, w2, b2)), 2)
    h = torch.tanh(conv2d(h, w3, b3)).flatten(1)
    return linear(torch.tanh(linear(h, w4, b4)), w5, b5)


def as_distribution(target: Tensor, num_classes: int) -> Tensor:
    return one_hot(target, num_classes).double() if target.ndim == 1 else target.double()


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    return float((found.double() - expected).abs().max() / expected.abs().max())


def plain_pgd(
    parameters: list[Tensor],
    x: Tensor,
    target: Tensor,
    *,
    start: Tensor,
    epsilon: Tensor,
    step_size: Tensor,
    num_steps: int,
    labels: Tensor | None,
) -> Tensor:
    eps, step = epsilon.view(-1, 1, 1, 1), step_size.view(-1, 1, 1, 1)
    x_adv, running = start.clone(), torch.ones(len(x), dtype=torch.bool)
    for _ in range(num_steps):
        logits, gradient = lenet5.logits_and_input_gradient(parameters, x_adv, target, num_threads=1)
        if labels is not None:
            running &= logits.argmax(1) == labels
        delta = torch.minimum(torch.maximum(x_adv + step * gradient.sign() - x, -eps), eps)
        x_adv = torch.where(running.view(-1, 1, 1, 1), (x + delta).clamp(0, 1), x_adv)
    return x_adv


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Spare the tiny reference computations torch's threads, which cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def native() -> None:
    """Skip where the machine has no compiler; the rest of the package then runs on torch."""
    try:
        lenet5.engine()
    except NativeUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing had been compiled in this process yet."""
    monkeypatch.setattr(engine_module, "_loaded", {})
    lenet5.engine.cache_clear()


def check_against_float64(num_classes: int, scale: float, kind: str, batch_sizes: range) -> None:
    parameters, x = make_parameters(num_classes, scale), make_images(MAX_BATCH)
    target = make_target(kind, MAX_BATCH, num_classes)
    weights = torch.rand(MAX_BATCH, generator=torch.Generator().manual_seed(3)) + 0.5
    # One sample at a time in float64: the sums for every batch size follow by addition.
    exact = [p.double().requires_grad_() for p in parameters]
    x_exact = x.double().requires_grad_()
    target_exact = target if kind == "labels" else target.double()
    logits = reference_logits(exact, x_exact)
    losses = cross_entropy(logits, target_exact, reduction="none")
    (x_gradient,) = torch.autograd.grad(losses.sum(), x_exact, retain_graph=True)
    sums = [torch.zeros_like(p) for p in exact]
    samples = []
    for i in range(MAX_BATCH):
        loss = cross_entropy(reference_logits(exact, x_exact[i : i + 1]), target_exact[i : i + 1])
        gradients = torch.autograd.grad(loss * weights[i].double(), exact)
        sums = [total + gradient for total, gradient in zip(sums, gradients, strict=True)]
        samples.append(sums)
    logits = logits.detach()
    for N in batch_sizes:
        found, gradient = lenet5.logits_and_input_gradient(parameters, x[:N], target[:N], num_threads=2)
        assert torch.equal(found, lenet5.logits(parameters, x[:N], num_threads=1))
        assert relative_error(found, logits[:N]) < TOLERANCE
        assert relative_error(gradient, x_gradient[:N]) < TOLERANCE
        # Any loss will do: its gradient by the logits is all that the native code sees.
        given = (softmax(logits[:N], 1) - as_distribution(target[:N], num_classes)) * weights[:N, None]
        gradients = lenet5.parameter_gradients(parameters, x[:N], given.float(), num_threads=2)
        for gradient, expected in zip(gradients, samples[N - 1], strict=True):
            assert relative_error(gradient, expected) < TOLERANCE


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("num_classes", "scale", "kind"),
    [
        (2, 1.0, "labels"),
        (2, 3.0, "distribution"),
        (10, 1.0, "distribution"),
        (10, 3.0, "labels"),
        (17, 1.0, "labels"),
        (17, 3.0, "distribution"),
    ],
)
def test_agrees_with_float64_autograd_for_every_batch_size(num_classes: int, scale: float, kind: str) -> None:
    check_against_float64(num_classes, scale, kind, range(1, MAX_BATCH + 1))


@pytest.mark.usefixtures("native")
def test_gradient_keeps_its_accuracy_where_the_network_is_sure() -> None:
    parameters, x = make_parameters(10, 3.0), make_images(8)
    parameters[8], parameters[9] = parameters[8] * 10, parameters[9] * 10
    labels = reference_logits(parameters, x).argmax(1)
    for i in range(8):
        exact = x[i : i + 1].double().requires_grad_()
        loss = cross_entropy(reference_logits([p.double() for p in parameters], exact), labels[i : i + 1])
        (expected,) = torch.autograd.grad(loss, exact)
        _, found = lenet5.logits_and_input_gradient(parameters, x[i : i + 1], labels[i : i + 1], num_threads=1)
        assert relative_error(found, expected) < TOLERANCE


@pytest.mark.usefixtures("native")
def test_non_finite_weights_show() -> None:
    x, target = make_images(3), torch.tensor([0, 1, 2])
    for layer in range(0, 10, 2):
        parameters = make_parameters(10)
        parameters[layer].view(-1)[0] = float("nan")
        logits, gradient = lenet5.logits_and_input_gradient(parameters, x, target, num_threads=1)
        assert logits.isnan().any(1).all()
        assert gradient.isnan().any()


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("label", range(3))
def test_early_stop_leaves_samples_whose_logits_are_not_finite(label: int) -> None:
    x, labels = make_images(20), torch.full((20,), label)
    settings = {"epsilon": torch.full((20,), 0.1), "step_size": torch.full((20,), 0.02), "num_steps": 5}
    for place in range(3):
        for value in (float("nan"), float("inf"), float("-inf")):
            parameters = make_parameters(3)
            parameters[9][place] = value
            found = lenet5.pgd(
                parameters, x, labels, start=x, **settings, early_stop=True, labels=labels, num_threads=2
            )
            assert torch.equal(found, x)


def attack_settings(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    epsilon = torch.rand(count, generator=generator) * 0.2
    epsilon[::5] = 0.0
    return {"epsilon": epsilon, "step_size": epsilon / 3}


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize("kind", ["labels", "distribution"])
@pytest.mark.parametrize("count", [1, 16, 37, 50, 70])
def test_pgd_equals_a_plain_loop(count: int, kind: str, early_stop: bool) -> None:
    parameters, x = make_parameters(10, 3.0), make_images(count)
    settings = attack_settings(count)
    target = make_target(kind, count, 10)
    labels = lenet5.logits(parameters, x, num_threads=1).argmax(1)
    labels[::4] = (labels[::4] + 1) % 10  # wrong from the start
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(5)) * 2 - 1
    start = (x + noise * settings["epsilon"].view(-1, 1, 1, 1)).clamp(0, 1)
    before = start.clone()
    expected = plain_pgd(
        parameters, x, target, start=start, **settings, num_steps=7, labels=labels if early_stop else None
    )
    for num_threads in (1, 2, 3):
        found = lenet5.pgd(
            parameters, x, target, start=start, **settings, num_steps=7, early_stop=early_stop, labels=labels,
            num_threads=num_threads,
        )  # fmt: skip
        assert torch.equal(found, expected)
    assert torch.equal(start, before)
    assert found.min() >= 0
    assert found.max() <= 1
    assert ((found - x).abs().amax((1, 2, 3)) <= settings["epsilon"] + 1e-7).all()
    if early_stop:
        wrong = lenet5.logits(parameters, start, num_threads=1).argmax(1) != labels
        assert wrong.any()
        assert torch.equal(found[wrong], start[wrong])


@pytest.mark.usefixtures("native")
def test_pgd_raises_the_loss_and_early_stop_keeps_a_misclassified_iterate() -> None:
    parameters, x = make_parameters(10, 3.0), make_images(40)
    labels = lenet5.logits(parameters, x, num_threads=2).argmax(1)
    settings = {"epsilon": torch.full((40,), 0.1), "step_size": torch.full((40,), 0.02), "num_steps": 10}
    full, stopped = (
        lenet5.pgd(parameters, x, labels, start=x, **settings, early_stop=stop, labels=labels, num_threads=2)
        for stop in (False, True)
    )
    after_full, after_stop = (lenet5.logits(parameters, x_adv, num_threads=2) for x_adv in (full, stopped))
    assert cross_entropy(after_full, labels) > cross_entropy(lenet5.logits(parameters, x, num_threads=2), labels)
    fooled = after_stop.argmax(1) != labels
    assert fooled.any()
    assert torch.equal(stopped[~fooled], full[~fooled])
    assert fooled[after_full.argmax(1) != labels].all()


@pytest.mark.usefixtures("native")
def test_zero_steps_and_empty_batches() -> None:
    parameters, x = make_parameters(10), make_images(3)
    ones, labels = torch.ones(3), torch.tensor([0, 1, 2])
    settings = {"early_stop": False, "num_threads": 2}
    found = lenet5.pgd(parameters, x, labels, start=x, epsilon=ones, step_size=ones, num_steps=0, **settings)
    assert torch.equal(found, x)
    assert lenet5.logits(parameters, x[:0], num_threads=2).shape == (0, 10)
    empty = lenet5.pgd(
        parameters, x[:0], labels[:0], start=x[:0], epsilon=ones[:0], step_size=ones[:0], num_steps=2, **settings
    )
    assert empty.shape == (0, 1, 32, 32)
    gradients = lenet5.parameter_gradients(parameters, x[:0], torch.zeros(0, 10), num_threads=2)
    assert all(torch.equal(g, torch.zeros_like(p)) for g, p in zip(gradients, parameters, strict=True))


@pytest.mark.usefixtures("native")
def test_results_depend_neither_on_place_nor_on_threads() -> None:
    parameters, x, target = make_parameters(10, 3.0), make_images(53), make_target("labels", 53, 10)
    order = torch.randperm(53, generator=torch.Generator().manual_seed(6))
    settings = attack_settings(53)
    logits, gradient = lenet5.logits_and_input_gradient(parameters, x, target, num_threads=1)
    moved = lenet5.logits_and_input_gradient(parameters, x[order], target[order], num_threads=3)
    assert torch.equal(logits[order], moved[0])
    assert torch.equal(gradient[order], moved[1])
    options = {"num_steps": 5, "early_stop": True}
    x_adv = lenet5.pgd(parameters, x, target, start=x, **settings, **options, labels=target, num_threads=1)
    shuffled = {name: value[order] for name, value in settings.items()}
    x_moved, y_moved = x[order], target[order]
    moved_adv = lenet5.pgd(
        parameters, x_moved, y_moved, start=x_moved, **shuffled, **options, labels=y_moved, num_threads=3
    )
    assert torch.equal(x_adv[order], moved_adv)
    given = torch.randn(53, 10, generator=torch.Generator().manual_seed(7))
    runs = [lenet5.parameter_gradients(parameters, x, given, num_threads=n) for n in (1, 2, 3, 3)]
    for gradients in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients, runs[0], strict=True))


@pytest.mark.usefixtures("native")
def test_layout_and_gradient_tracking_of_the_arguments_do_not_matter() -> None:
    parameters, x = make_parameters(10), make_images(5)
    other = [p.clone().requires_grad_() for p in parameters]
    other[6] = parameters[6].T.contiguous().T  # same values, other strides
    strided = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(lenet5.logits(other, strided, num_threads=1), lenet5.logits(parameters, x, num_threads=1))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 1, 28, 28)}, ValueError, r"x must have shape \(2, 1, 32, 32\), got \(2, 1, 28, 28\)"),
        ({"x": torch.zeros(())}, ValueError, r"x must have shape"),
        ({"x": torch.zeros(2, 1, 32, 32).double()}, TypeError, r"x must be a torch\.float32 tensor"),
        ({"target": torch.tensor([0, 10])}, ValueError, r"target must be classes from 0 to 9, got 0 to 10"),
        ({"target": torch.tensor([0.0, 1.0])}, TypeError, r"target must be a torch\.int64 tensor"),
        ({"target": torch.zeros(2, 9)}, ValueError, r"target must have shape \(2, 10\)"),
        ({"num_threads": 0}, ValueError, r"num_threads must be at least 1, got 0"),
        ({"epsilon": torch.zeros(3)}, ValueError, r"epsilon must have shape \(2,\), got \(3,\)"),
        ({"start": torch.zeros(1, 1, 32, 32)}, ValueError, r"start must have shape \(2, 1, 32, 32\)"),
        ({"num_steps": -1}, ValueError, r"num_steps must lie in \[0, 2\^31\), got -1"),
        ({"early_stop": True}, ValueError, r"early_stop needs labels"),
        ({"early_stop": True, "labels": torch.tensor([0, -1])}, ValueError, r"labels must be classes from 0 to 9"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {
        "parameters": make_parameters(10),
        "x": torch.zeros(2, 1, 32, 32),
        "target": torch.tensor([0, 1]),
        "start": torch.zeros(2, 1, 32, 32),
        "epsilon": torch.zeros(2),
        "step_size": torch.zeros(2),
        "num_steps": 1,
        "early_stop": False,
        "num_threads": 1,
    }
    with pytest.raises(error, match=message):
        lenet5.pgd(**{**arguments, **change})


def answer(source: Path) -> int:
    return build.load(source).answer()


def test_two_processes_may_build_at_once(tmp_path: Path) -> None:
    require_compiler()
    source = tmp_path / "tiny.cpp"
    source.write_text(TINY_SOURCE)
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    processes = [Other(answer, source, environment=environment) for _ in range(2)]
    assert [process.end(100).returncode for process in processes] == [42, 42]
    left = list((tmp_path / "cache" / "frl_repro" / "native").iterdir())
    assert left
    assert all(path.name.startswith("tiny-") and path.suffix == ".so" for path in left)


def test_cache_is_used_and_a_damaged_copy_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_compiler()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "tiny.cpp"
    source.write_text(TINY_SOURCE)
    assert build.load(source).answer() == 42
    (library,) = build.cache_folder().iterdir()
    intact, stamp = library.read_bytes(), library.stat().st_mtime_ns
    build.load(source)
    assert library.stat().st_mtime_ns == stamp
    library.unlink()  # a new file: the old one is mapped into this process
    library.write_bytes(intact[: len(intact) // 2])
    assert build.load(source).answer() == 42
    assert [path.read_bytes() for path in build.cache_folder().iterdir()] == [intact]
    source.write_text(TINY_SOURCE.replace("42", "43"))
    assert build.load(source).answer() == 43


def require_compiler() -> None:
    try:
        compiler = build.find_compiler()
    except NativeUnavailable as error:
        pytest.skip(str(error))
    if subprocess.run([*compiler, "--version"], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"{compiler[0]} does not work")  # CXX=/bin/false


@pytest.mark.usefixtures("forgotten")
def test_no_compiler_is_one_clear_line_and_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        NativeUnavailable, match=r"^no C\+\+ compiler found \(looked for \$CXX, g\+\+, clang\+\+, c\+\+\)$"
    ):
        lenet5.engine()
    monkeypatch.setattr(engine_module, "load", lambda *_, **__: pytest.fail("tried again"))
    with pytest.raises(NativeUnavailable, match="no C"):
        lenet5.logits(make_parameters(10), make_images(1), num_threads=1)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (None, "the C++ compiler named by CXX was not found: {path}"),
        ("exit 1", "the build with {path} failed: exit status 1"),
        ("echo note >&2; echo 'x.cpp:1: error: bad' >&2; exit 1", "the build with {path} failed: x.cpp:1: error: bad"),
        ("exit 0", "the build with {path} failed: exit status 0"),
    ],
)
@pytest.mark.usefixtures("forgotten")
def test_failed_build_says_why(
    program: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "compiler"
    if program:
        compiler.write_text(f"#!/bin/sh\n{program}\n")
        compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(NativeUnavailable) as caught:
        lenet5.engine()
    assert str(caught.value) == reason.format(path=compiler)


@pytest.mark.usefixtures("forgotten")
def test_unusable_cache_folder_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_compiler()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(NativeUnavailable, match=r"cannot be stored or loaded: .*file"):
        lenet5.engine()


@pytest.mark.usefixtures("forgotten")
def test_a_command_that_cannot_be_read_and_a_missing_home_folder_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", 'g++ "x')
    with pytest.raises(NativeUnavailable, match=r'^CXX=g\+\+ "x cannot be read as a command \(No closing quotation\)$'):
        build.find_compiler()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the XDG specification
    monkeypatch.setenv("HOME", str(tmp_path))
    assert build.cache_folder() == tmp_path / ".cache" / "frl_repro" / "native"
    monkeypatch.delenv("HOME")

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(NativeUnavailable, match="no home folder to keep the compiled library in: give XDG_CACHE_HOME="):
        build.cache_folder()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source file that compiles at once, and an empty cache."""
    require_compiler()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "tiny.cpp"
    source.write_text(TINY_SOURCE)
    return source


@pytest.mark.parametrize("open_to_others", ["cache/frl_repro/native", "cache/frl_repro", "cache"])
def test_a_library_is_neither_kept_nor_loaded_where_others_may_write(
    open_to_others: str, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build.load(tiny)
    (kept,) = build.cache_folder().iterdir()
    kept.unlink()  # a new file: the old one is mapped into this process
    kept.write_bytes(b"\x7fELF of someone else")
    (tmp_path / open_to_others).chmod(0o777)
    with caplog.at_level("INFO", logger="frl_repro"):
        assert build.load(tiny).answer() == 42
    assert f"{tmp_path / open_to_others} may be written to by others" in caplog.text
    assert kept.read_bytes() == b"\x7fELF of someone else"
    (tmp_path / open_to_others).chmod(0o1777)  # as /tmp: what is there stays its owner's
    assert build.load(tiny).answer() == 42
    assert kept.read_bytes() != b"\x7fELF of someone else"


@pytest.mark.parametrize("harm", ["mode", "link"])
def test_a_library_that_others_may_change_is_replaced(harm: str, tiny: Path, tmp_path: Path) -> None:
    build.load(tiny)
    (kept,) = build.cache_folder().iterdir()
    kept.chmod(0o666)
    if harm == "link":
        kept.rename(tmp_path / "elsewhere.so")
        kept.symlink_to(tmp_path / "elsewhere.so")
    assert build.load(tiny).answer() == 42
    (kept,) = build.cache_folder().iterdir()
    assert not kept.is_symlink()
    assert kept.stat().st_mode & 0o022 == 0


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only the superuser gives files away")
@pytest.mark.parametrize("given_away", ["folder", "file"])
def test_what_belongs_to_another_user_is_not_loaded(
    given_away: str, tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build.load(tiny)
    (kept,) = build.cache_folder().iterdir()
    os.chown(kept if given_away == "file" else kept.parent, 12345, -1)
    with caplog.at_level("INFO", logger="frl_repro"):
        assert build.load(tiny).answer() == 42
    assert ("may be written to by others" in caplog.text) == (given_away == "folder")
    assert [path.stat().st_uid for path in build.cache_folder().iterdir()] == [0]


def test_a_full_disk_is_compiled_for_once_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exit\necho >>{tmp_path}/calls\n'
        "echo 'ld: final link failed: No space left on device, an error' >&2; exit 1\n"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(NativeUnavailable, match="No space left on device"):
        build.load(tiny)
    assert (tmp_path / "calls").read_text().count("\n") == 1

    def full(path: Path, _: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(NativeUnavailable, match=r"cannot be stored or loaded: .*No space left on device"):
        build.load(tiny)
    assert (tmp_path / "calls").read_text().count("\n") == 1
    assert not list(build.cache_folder().iterdir())


def test_builds_that_were_killed_go_by_age(tiny: Path) -> None:
    build.cache_folder().mkdir(parents=True)
    for name, age in (("build-old", 2 * SECONDS_IN_USE), ("build-young", 60)):
        (build.cache_folder() / name).mkdir()
        (build.cache_folder() / name / "library.so").touch()
        os.utime(build.cache_folder() / name, (0, time.time() - age))
    build.load(tiny)
    assert [path.name for path in build.cache_folder().glob("build-*")] == ["build-young"]


@pytest.mark.usefixtures("forgotten")
def test_pytorch_takes_over_with_one_line_for_all_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "missing"))
    with caplog.at_level("INFO", logger="frl_repro"):
        for _ in range(3):
            assert (
                choose_backend("auto", LeNet5(num_classes=10).eval(), torch.device("cpu"), image_shape=(1, 32, 32))
                is TORCH
            )
    assert caplog.text.count("native backend not available") == 1


X86_VARIANTS = [("-march=x86-64-v3",), ("-march=x86-64",)] if platform.machine() in {"x86_64", "AMD64"} else []


@pytest.mark.slow
@pytest.mark.usefixtures("native", "forgotten")
@pytest.mark.parametrize("flags", [("-DFRL_LANES=4",), ("-DFRL_LANES=8",), ("-DFRL_LANES=16",), *X86_VARIANTS])
def test_other_processors_variants_agree(flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "load", lambda source, **_: build.load(source, extra_flags=flags))
    check_against_float64(10, 3.0, "labels", range(1, MAX_BATCH + 1, 13))
    test_pgd_equals_a_plain_loop(37, "labels", True)

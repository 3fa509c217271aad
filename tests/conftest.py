"""Shared fixtures: small inputs, a hermetic user cache, and plain hypothesis settings for a slow machine."""

import logging
import os

import pytest
from hypothesis import settings

# Tests run side by side, and tiny tensors gain nothing from threads. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("frl_repro", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("frl_repro")


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    """Run the test in an empty folder and return it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def loggers():
    """Undo what Hydra does: its handler writes to a stream that the next test has closed, and others are disabled."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in [name for name in root.manager.loggerDict if name.startswith("frl_repro")]:
        logging.getLogger(name).disabled = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Write what tests print of names that are no UTF-8 by its codes: pytest-xdist cannot send it, and would stop."""
    report = yield
    report.sections = [(title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections]
    return report

"""Shared fixtures: small inputs, a hermetic user cache, and plain hypothesis settings for a slow machine."""

import os

import pytest
from hypothesis import settings

# Two cores at most: more threads than cores make tiny tensors slower.
os.environ.setdefault("OMP_NUM_THREADS", "2")
settings.register_profile("frl_repro", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("frl_repro")


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    """Run the test in an empty folder and return it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path

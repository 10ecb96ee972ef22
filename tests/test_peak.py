"""The loops that measure what the arithmetic units do at best."""

import ctypes
import functools

import numpy as np
import pytest
import torch

from jetzoo import profiling
from jetzoo.native import compilation
from jetzoo.native.peak import peaks

CHAINS, ROUNDS = 12, 5


@pytest.fixture
def library():
    library = compilation.load("peak")
    if library is None:
        pytest.skip("no compiler for the kernels")
    return library


def called(kernel, kind, *numbers):
    kernel.argtypes = (ctypes.c_int64, ctypes.POINTER(kind))
    kernel.restype = ctypes.c_int64
    given = (kind * 2)(*numbers)
    return kernel(ROUNDS, given), given[0]


def test_every_chain_is_computed(library):
    operations, found = called(library.multiply_add, ctypes.c_float, 0.5, 3.0)
    width = operations / (2 * CHAINS * ROUNDS)
    assert width in (4, 8, 16)
    chains = np.arange(CHAINS, dtype=float)
    for _ in range(ROUNDS):
        chains = 0.5 * chains + 3
    assert found == pytest.approx(0.5 + width * chains.sum())


def test_every_chain_of_bytes_is_computed(library):
    a, b = 0x01020304, 0x05060708  # 1 * 5 + 2 * 6 + 3 * 7 + 4 * 8 = 70
    operations, found = called(library.multiply_add_bytes, ctypes.c_int32, a, b)
    if not operations:
        pytest.skip("no instruction for products of bytes")
    assert operations / (8 * CHAINS * ROUNDS) in (8, 16)
    assert found == functools.reduce(int.__xor__, (c + 70 * ROUNDS for c in range(CHAINS)), a)


def test_peaks(library):
    float32, int8 = peaks()
    assert float32 > 1e8
    assert int8 is None or int8 > 1e8


def test_without_kernels(monkeypatch):
    monkeypatch.setenv("JETZOO_NATIVE", "0")
    monkeypatch.setattr(compilation, "_state", compilation._State())
    assert peaks() == (None, None)
    assert profiling.machine_limits().peak is None


def test_other_dtypes_have_no_peak():
    assert profiling.machine_limits(dtype=torch.bfloat16).peak is None

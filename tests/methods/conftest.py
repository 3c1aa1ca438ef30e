"""Both forms of the element-wise chains."""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from pmsm.methods.rounding import kernels


@pytest.fixture(params=["compiled", "plain"])
def form(request, monkeypatch) -> Iterator[str]:
    """Every law holds for the compiled kernels and for the plain torch form, their reference."""
    if request.param == "compiled" and find_spec("numba") is None:
        pytest.skip("needs the extra fast")
    monkeypatch.setenv("PMSM_KERNELS", {"compiled": "numba", "plain": "torch"}[request.param])
    kernels.cache_clear()
    yield request.param
    kernels.cache_clear()

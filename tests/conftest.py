"""Strict JAX for the whole suite: no silent promotion of dtypes or ranks, several CPU devices."""

import os
from importlib.metadata import version

# The suite compiles many small programs and runs each a few times: machine code need not be fast.
# The last switch saves two thirds of the time of a compilation; later versions do not know it, and stop.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 "
    "--xla_cpu_parallel_codegen_split_count=1 "
    + ("--xla_cpu_use_fusion_emitters=false " if version("jaxlib").startswith("0.10.") else "")
    + os.environ.get("XLA_FLAGS", "")
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import functools
import gc
from collections.abc import Iterator

import hypothesis
import jax
import pytest

from tests.support import tolerances
from tests.support.programs import Programs, compiled

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_platforms", "cpu")

# The first example compiles; how long that takes says nothing.
hypothesis.settings.register_profile("jmi", deadline=None)
hypothesis.settings.load_profile("jmi")


def pytest_configure(config: pytest.Config) -> None:
    """On request, write down what each test costs."""
    if "JMI_TEST_PROGRAMS" in os.environ:
        config.pluginmanager.register(Programs(os.environ["JMI_TEST_PROGRAMS"]))


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what compares two programs, which may differ on another CPU: no test can forget to say so."""
    for item in items:
        used = vars(item.module).values() if isinstance(item, pytest.Function) else ()
        called = (value.func if isinstance(value, functools.partial) else value for value in used)
        if any(value is tolerances.assert_agree for value in called):
            item.add_marker("programs")


_HELD = 1000
_DROPPED = [0]
"""How many programs had been compiled when they were last dropped."""


@pytest.fixture(autouse=True)
def few_programs() -> Iterator[None]:
    """Drop compiled programs now and then: each holds some 25 memory maps, of which Linux allows 65,530."""
    yield
    if compiled() - _DROPPED[0] > _HELD:
        jax.clear_caches()
        gc.collect()
        _DROPPED[0] = compiled()

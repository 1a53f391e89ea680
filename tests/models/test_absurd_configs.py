"""Every field of every config made absurd: a clear error or a model that works, and soon.

The values are those that a slip of the hand, another program or malice put into a file. Each stands in
for each field of a config of each family, once. Reading costs a fraction of a millisecond, so all of them
are tried; of the models that then fit their tensors, a seeded few are traced.
"""

import collections
import dataclasses
import math
import random
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jmi
from jmi.errors import JmiError
from jmi_models import families
from jmi_models.auto import examine
from jmi_models.decoder.rope import Rope
from jmi_models.decoder.transformer import Transformer
from jmi_models.families import FAMILIES
from jmi_models.weights.checkpoint import problems
from tests.support.config_data import headers_of, small
from tests.support.random_params import random_params

NESTED: Any = 1
for _ in range(50):
    NESTED = {"rope_type": NESTED}

ABSURD: tuple[Any, ...] = (
    *(0, -1, 1, 2, 3, 10**6, 10**9, 2**63, 10**400),
    *(0.0, -0.0, -1.0, 0.5, 1e-300, 1e300, math.nan, math.inf, -math.inf),
    *("", "1", "x", "\x1b[31m", "default", "float32"),
    *(True, False, None, [], [1], [None], ["full_attention"], [[]], {}, {"a": 1}, NESTED),
)
"""What stands in for a value: wrong type, wrong sign, nothing, far too much, no number, nested."""

INFERRED = ("llama", "gemma3_text", "smollm3", "phi3", "gpt_oss", "qwen2_moe")
"""Families whose mechanisms together are those that can be inferred."""

_SOON = 1.0
"""Seconds of processor time that a config may take."""


def variants(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """``config`` with each field, and each field of a nested object, left out or made absurd."""
    for name, value in config.items():
        yield f"without {name}", {key: value for key, value in config.items() if key != name}
        for absurd in ABSURD:
            yield f"{name}={absurd!r:.60}", {**config, name: absurd}
        if isinstance(value, dict):
            for label, inner in variants(value):
                yield f"{name}: {label}", {**config, name: inner}


def numbers(value: Any) -> Iterator[float]:
    """Every number in an architecture, the inverse frequencies of its rotary embeddings included."""
    if isinstance(value, Rope):
        yield from np.ravel(np.asarray(value.scaling.inv_freq(value.theta, value.dim, jnp.asarray([9]))))
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from numbers(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, (int, float)):
        yield value


def outcome(config: Mapping[str, Any], headers: Any) -> Any:
    """The architecture, if its tensors fit; the JmiError that refuses it; or a fault in words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            family, arch = (
                families.described(config, headers)
                if families.is_known(config, headers)
                else examine("it", config, headers).require()
            )
            found = problems(arch, family, headers)
        except JmiError as error:
            message = str(error)
            return (
                error
                if message.replace("\n", "").isprintable() and len(message) < 6000
                else f"message {message!r:.200}"
            )
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:100]}"
    if found:
        return found
    with np.errstate(all="ignore"):
        try:
            odd = [number for number in numbers(arch) if not math.isfinite(float(np.float32(number)))]
        except Exception as error:
            return f"afterwards {type(error).__name__}: {str(error)[:100]}"
    return f"loads with {odd[:3]}" if odd else arch


@pytest.mark.parametrize("family", FAMILIES)
def test_no_value_of_a_field_ends_in_anything_but_an_error_or_a_model(family: str) -> None:
    config = small(family)
    judge(headers_of(config), share(config, 0.4))


@pytest.mark.parametrize("family", INFERRED)
def test_nor_does_one_of_a_family_that_is_inferred(family: str) -> None:
    config = small(family)
    judge(headers_of(config), share({**config, "model_type": f"some_{family}"}, 0.2))


def share(config: Mapping[str, Any], part: float) -> list[tuple[str, dict[str, Any]]]:
    """A seeded part of the variants of ``config``, other ones for each family."""
    rng = random.Random(str(config["model_type"]))
    return [variant for variant in variants(config) if rng.random() < part]


def judge(headers: Any, tried: list[tuple[str, dict[str, Any]]]) -> None:
    """Fail on every fault among the configs ``tried``, and where they are not of both kinds."""
    kinds, faults, slow = collections.Counter[str](), [], []
    for label, changed in tried:
        started = time.process_time()
        got = outcome(changed, headers)
        if time.process_time() - started > _SOON:
            slow.append(label)
        kinds[type(got).__name__] += 1
        if isinstance(got, str):
            faults.append(f"{label}: {got}")
    assert not faults, f"{len(faults)} of {len(tried)}:\n" + "\n".join(faults)
    assert not slow, slow
    assert kinds["ConfigError"] > 20, kinds
    assert kinds["Transformer"] + kinds["Rwkv"] > 5, kinds


@pytest.mark.parametrize("family", ["gpt_oss", "gemma2"])
def test_a_model_of_an_absurd_config_that_loads_can_be_run(family: str) -> None:
    config = small(family)
    headers, rng = headers_of(config), random.Random(1)
    plain, found = outcome(config, headers), []
    for _, changed in share(config, 0.3):
        arch = outcome(changed, headers)
        if isinstance(arch, Transformer) and arch != plain and arch not in found:
            found.append(arch)
    assert len(found) > 3
    for arch in rng.sample(found, 2):
        params = random_params(arch, 0, 0)
        logits = np.asarray(jmi.forward(arch, params, np.arange(8, dtype=np.int32)[None]).logits)
        assert np.isfinite(logits).all(), arch

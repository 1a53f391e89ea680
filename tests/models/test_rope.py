"""Rotary tables against the formulas of the papers, written out one frequency at a time."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmi.errors import ConfigError
from jmi_models.decoder import rope
from jmi_models.families import rope_config

DIM, THETA, POSITIONS = 16, 10000.0, [0, 1, 7, 12, 300]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8.0, "original_max_position_embeddings": 256}
SHORT, LONG = [1 + 0.1 * i for i in range(DIM // 2)], [1 + 0.7 * i for i in range(DIM // 2)]
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": SHORT,
    "long_factor": LONG,
    "original_max_position_embeddings": 64,
}


def plain(i: int, theta: float = THETA) -> float:
    return 1 / theta ** (2 * i / DIM)


def llama3(i: int) -> float:
    """Llama 3.1: by wavelength, in tokens."""
    freq, factor, low, high, original = plain(i), 8.0, 1.0, 4.0, 32
    wavelength = 2 * math.pi / freq
    if wavelength < original / high:
        return freq
    if wavelength > original / low:
        return freq / factor
    smooth = (original / wavelength - low) / (high - low)
    return (1 - smooth) * freq / factor + smooth * freq


def dynamic(i: int, length: int, factor: float = 3.0, original: int = 64) -> float:
    """NTK by parts: the base grows once the sequence is longer than the model was trained for."""
    longest = max(length, original)
    base = THETA * (factor * longest / original - (factor - 1)) ** (DIM / (DIM - 2))
    return plain(i, base)


def yarn(i: int, truncate: bool = True, beta_fast: float = 8.0) -> float:
    """YaRN, equations 17 to 20: keep what turns often, interpolate what turns rarely."""

    def dimension(turns: float) -> float:
        return DIM * math.log(256 / (turns * 2 * math.pi)) / (2 * math.log(THETA))

    low, high = dimension(beta_fast), dimension(1.0)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    ramp = min(max((i - max(low, 0)) / (min(high, DIM - 1) - max(low, 0)), 0), 1)
    return ramp * plain(i) / 4.0 + (1 - ramp) * plain(i)


def tables(config: dict[str, Any], positions: Any, dtype: Any = "float64") -> tuple[np.ndarray, np.ndarray]:
    with jax.enable_x64(dtype == "float64"):
        rotary = rope_config.read({"max_position_embeddings": 64, "rope_theta": THETA, **config}, DIM, 1.0)
        cos, sin = rotary.tables(jnp.asarray(positions, jnp.int32), jnp.dtype(dtype))
        return np.asarray(cos), np.asarray(sin)


def assert_tables(config: dict[str, Any], freqs: list[float], factor: float = 1.0) -> None:
    cos, sin = tables(config, [POSITIONS])
    assert cos.dtype == sin.dtype == np.float64
    want = [[position * freq for freq in freqs] for position in POSITIONS]
    np.testing.assert_allclose(cos[0], factor * np.cos(want), rtol=0, atol=1e-12)
    np.testing.assert_allclose(sin[0], factor * np.sin(want), rtol=0, atol=1e-12)


HALF = range(DIM // 2)
SQRT = math.sqrt(1 + math.log(4) / math.log(64))


@pytest.mark.parametrize(
    ("scaling", "freqs", "factor"),
    [
        (None, [plain(i) for i in HALF], 1.0),
        ({"rope_type": "default"}, [plain(i) for i in HALF], 1.0),
        ({"rope_type": "linear", "factor": 2.5}, [plain(i) / 2.5 for i in HALF], 1.0),
        ({"type": "linear", "factor": 4}, [plain(i) / 4 for i in HALF], 1.0),
        (LLAMA3, [llama3(i) for i in HALF], 1.0),
        ({"rope_type": "dynamic", "factor": 3.0}, [dynamic(i, 301) for i in HALF], 1.0),
        (YARN, [yarn(i) for i in HALF], 0.1 * math.log(4) + 1),
        ({**YARN, "truncate": False}, [yarn(i, truncate=False) for i in HALF], 0.1 * math.log(4) + 1),
        ({**YARN, "beta_fast": None}, [yarn(i, beta_fast=32.0) for i in HALF], 0.1 * math.log(4) + 1),
        ({**YARN, "attention_factor": 0.8}, [yarn(i) for i in HALF], 0.8),
        ({**YARN, "mscale": 0.7}, [yarn(i) for i in HALF], 0.1 * math.log(4) + 1),
        (
            {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
            [yarn(i) for i in HALF],
            (0.07 * math.log(4) + 1) / (0.13 * math.log(4) + 1),
        ),
        (LONGROPE, [plain(i) / LONG[i] for i in HALF], 1.0),
        ({**LONGROPE, "factor": 4.0}, [plain(i) / LONG[i] for i in HALF], SQRT),
        ({**LONGROPE, "attention_factor": 1.2}, [plain(i) / LONG[i] for i in HALF], 1.2),
    ],
)
def test_tables_equal_the_formulas(scaling: Any, freqs: list[float], factor: float) -> None:
    assert_tables({"rope_scaling": scaling}, freqs, factor)


def test_the_examples_reach_every_branch_of_the_formulas() -> None:
    kinds = [plain(i) / llama3(i) for i in HALF]
    assert kinds[0] == 1
    assert kinds[-1] == 8
    assert any(1 < kind < 8 for kind in kinds)
    ramps = [plain(i) / yarn(i) for i in HALF]
    assert ramps[0] == 1
    assert ramps[-1] == pytest.approx(4)
    assert any(1.01 < ramp < 3.99 for ramp in ramps)


def test_theta_and_scaling_may_stand_in_rope_parameters() -> None:
    config = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0}}
    assert_tables(config, [plain(i, 300.0) / 2 for i in HALF])


def test_longrope_takes_its_factor_from_the_two_lengths() -> None:
    config = {"rope_scaling": LONGROPE, "max_position_embeddings": 256}
    assert_tables(config, [plain(i) / LONG[i] for i in HALF], SQRT)


@pytest.mark.parametrize(
    ("scaling", "freq"),
    [
        ({"rope_type": "dynamic", "factor": 3.0}, lambda i, length: dynamic(i, length)),
        (LONGROPE, lambda i, length: plain(i) / (LONG if length > 64 else SHORT)[i]),
    ],
)
def test_each_row_scales_with_its_own_length(scaling: Any, freq: Any) -> None:
    rows = [[0, 62, 63], [0, 63, 64], [0, 5, 200]]
    cos, _ = tables({"rope_scaling": scaling}, rows)
    want = [[[math.cos(p * freq(i, max(row) + 1)) for i in HALF] for p in row] for row in rows]
    np.testing.assert_allclose(cos, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_angles_are_float32_whatever_the_model(dtype: str) -> None:
    cos, sin = tables({}, [[255, 256, 257]], dtype)
    assert cos.dtype == sin.dtype == np.float32
    want = [[math.cos(p * plain(i)) for i in HALF] for p in (255, 256, 257)]
    np.testing.assert_allclose(cos[0], want, rtol=0, atol=5e-5)


def test_rotation_turns_the_two_halves_against_each_other() -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 2, DIM)).astype(np.float32)
    cos, sin = tables({}, [[0, 4, 9]], "float32")
    got = np.asarray(rope.rotate(jnp.asarray(x), jnp.asarray(cos), jnp.asarray(sin)))
    want = np.empty_like(x)
    for s, position in enumerate((0, 4, 9)):
        for i in HALF:
            turn = np.exp(1j * position * plain(i)) * (x[0, s, :, i] + 1j * x[0, s, :, i + DIM // 2])
            want[0, s, :, i], want[0, s, :, i + DIM // 2] = turn.real, turn.imag
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_rotation_keeps_the_dtype_of_the_model() -> None:
    cos, sin = (jnp.asarray(table) for table in tables({}, [[0, 1]], "bfloat16"))
    x = jnp.ones((1, 2, 1, DIM), jnp.bfloat16)
    assert rope.rotate(x, cos, sin).dtype == jnp.bfloat16


def test_unknown_scaling_is_refused_and_the_known_are_named() -> None:
    with pytest.raises(ConfigError, match=r"'su' is not supported.*linear.*llama3.*dynamic.*yarn.*longrope"):
        rope_config.read({"rope_scaling": {"type": "su", "factor": 2.0}}, DIM, THETA)


@pytest.mark.parametrize(
    ("scaling", "parameter"),
    [
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "dynamic"}, "factor"),
        ({"rope_type": "yarn"}, "factor"),
        *(({k: v for k, v in LLAMA3.items() if k != name}, name) for name in list(LLAMA3)[1:4]),
        *(
            ({k: v for k, v in LONGROPE.items() if k != name}, name)
            for name in ("short_factor", "long_factor")
        ),
    ],
)
def test_missing_parameter_is_named(scaling: dict[str, Any], parameter: str) -> None:
    with pytest.raises(ConfigError, match=f"{scaling['rope_type']}.*{parameter}"):
        rope_config.read({"rope_scaling": scaling}, DIM, THETA)


@pytest.mark.parametrize("name", ["short_factor", "long_factor"])
def test_longrope_needs_one_factor_per_frequency(name: str) -> None:
    with pytest.raises(ConfigError, match="longrope needs 8"):
        rope_config.read({"rope_scaling": {**LONGROPE, name: [1.0] * 7}}, DIM, THETA)


@pytest.mark.parametrize(
    "scaling",
    [
        "linear",
        ["linear", 2.0],
        {"rope_type": "linear", "factor": "twice"},
        {"rope_type": "linear", "factor": None},
        {"rope_type": "linear", "factor": 0},
        {"rope_type": "yarn", "factor": [4.0]},
        {**LONGROPE, "short_factor": 1.0},
        {**LONGROPE, "short_factor": ["a"] * 8},
        {"rope_type": ["linear"], "factor": 2.0},
    ],
)
def test_ill_typed_scaling_is_a_config_error(scaling: Any) -> None:
    with pytest.raises(ConfigError):
        rope_config.read({"rope_scaling": scaling}, DIM, THETA)


@pytest.mark.parametrize("theta", [0, -1.0, True, "10000"])
@pytest.mark.parametrize("where", ["rope_theta", "rope_parameters"])
def test_a_base_that_is_no_positive_number_is_refused(theta: Any, where: str) -> None:
    config = {"rope_theta": theta} if where == "rope_theta" else {where: {"rope_theta": theta}}
    with pytest.raises(ConfigError, match="rope_theta"):
        rope_config.read(config, DIM)


def test_both_spellings_together_are_merged() -> None:
    config = {
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_theta": 300.0, "rope_type": "linear"},
    }
    assert_tables(config, [plain(i, 300.0) / 2 for i in HALF])


def test_both_spellings_may_not_contradict_each_other() -> None:
    config = {"rope_scaling": {"factor": 2.0}, "rope_parameters": {"factor": 4.0}}
    with pytest.raises(ConfigError, match="differ in factor"):
        rope_config.read(config, DIM)


def test_a_field_of_another_scaling_warns() -> None:
    with pytest.warns(UserWarning, match="low_freq_factor"):
        rope_config.read({"rope_scaling": {"type": "linear", "factor": 2.0, "low_freq_factor": 1.0}}, DIM)


@pytest.mark.parametrize(
    ("scaling", "reach"),
    [
        ({"type": "linear", "factor": 4.0}, 256),
        (LLAMA3, 64),
        ({**YARN, "factor": 8.0}, 2048),
        (LONGROPE, 64),
        (None, 64),
    ],
)
def test_scaling_extends_the_context_where_the_config_leaves_it_out(scaling: Any, reach: int) -> None:
    rotary = rope_config.read({"rope_scaling": scaling, "max_position_embeddings": 64}, DIM)
    assert rotary.scaling.reach(64) == reach

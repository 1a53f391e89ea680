"""RWKV-6 and RWKV-7 as the ``rwkv`` package and a slow loop in float64 compute them.

``python -m tests.oracles.rwkv_package`` (with torch and ``rwkv``) writes ``tests/data/rwkv{6,7}.npz``: a
random model in the original names of ``.pth`` files and what it makes of two prompts, each continued from
its state. The package's states are float32, so the float64 values are those of `run`, which it agrees with.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from scipy.special import expit

DATA = Path(__file__).parents[1] / "data"
EPS, GROUP_EPS = 1e-5, 64e-5  # of every LayerNorm and of ln_x, whatever the size of a head
CONFIGS = {
    6: {"layers": 3, "d_model": 48, "heads": 3, "head_size": 16, "d_mlp": 104, "vocab": 41},
    7: {"layers": 3, "d_model": 128, "heads": 2, "head_size": 64, "d_mlp": 88, "vocab": 41},
}
PROMPTS = {"a": (12, 5), "b": (7, 3)}  # lengths of the prompt and of its continuation
Arrays = Mapping[str, np.ndarray]


class Run(NamedTuple):
    """Outputs per token, then what a continuation needs: its shifts are LN1 and LN2 of the last token."""

    logits: np.ndarray  # [s, vocab]
    resid: np.ndarray  # [s, layer + 1, d]: after LN0 and after every block
    state: np.ndarray  # [layer, head, key, value]
    att_shift: np.ndarray  # [layer, d]
    ffn_shift: np.ndarray  # [layer, d]


def shapes(version: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor; RWKV-7's layer 0 has the v0, v1 and v2 that nothing reads."""
    layers, d, heads, size, m, vocab = CONFIGS[version].values()
    square = ["att.receptance", "att.key", "att.value", "att.output"]
    rows, ranks = ["ffn.x_k", *(f"att.x_{x}" for x in "rwkvag")], {"w": 6, "a": 5, "v": 4, "g": 7}
    rows += ["att.w0", "att.a0", "att.v0", "att.k_k", "att.k_a"]
    block: dict[str, tuple[int, ...]] = {"att.r_k": (heads, size)}
    block |= {f"att.{x}{i}": ((d, n), (n, d))[i - 1] for x, n in ranks.items() for i in (1, 2)}
    if version == 6:
        square += ["att.gate", "ffn.receptance"]
        rows = ["att.time_decay", "ffn.time_maa_k", "ffn.time_maa_r"]
        rows += [f"att.time_maa_{x}" for x in "xwkvrg"]
        block = {"att.time_maa_w1": (d, 5 * 4), "att.time_maa_w2": (5, 4, d), "att.time_faaaa": (heads, size)}
        block |= {"att.time_decay_w1": (d, 6), "att.time_decay_w2": (6, d)}
    block |= {"ffn.key.weight": (m, d), "ffn.value.weight": (d, m)}
    block |= dict.fromkeys(rows, (1, 1, d)) | {f"{name}.weight": (d, d) for name in square}
    out = {f"blocks.{i}.{name}": shape for i in range(layers) for name, shape in block.items()}
    norms = [f"blocks.{i}.{name}" for i in range(layers) for name in ("ln1", "ln2", "att.ln_x")]
    out |= {f"{n}.{part}": (d,) for n in [*norms, "blocks.0.ln0", "ln_out"] for part in ("weight", "bias")}
    return out | {"emb.weight": (vocab, d), "head.weight": (vocab, d)}


def weight(version: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One random tensor: float32 values that bfloat16 holds; few of them in matrices, for small files."""
    rng = np.random.default_rng([version, *name.encode()])
    normal, uniform, last = rng.standard_normal(shape), rng.random(shape), name.split(".att.")[-1]
    if ".ln" in f".{name}":
        values = 0.3 * normal + name.endswith("weight")
    elif last in ("emb.weight", "time_faaaa", "r_k", "a0", "v0"):
        values = 0.7 * normal
    elif shape[:-1] == (1, 1):  # per token RWKV-6 keeps 0.07 to 0.97, RWKV-7 0.56 to 0.99; shifts in [0, 1]
        low, high = {"time_decay": (-3.5, 1), "w0": (-4, 3), "k_k": (0.4, 1.4)}.get(last, (0, 1))
        values = low + (high - low) * uniform
    else:
        size = 0.5 if last == "time_maa_w2" else 1.7
        values = size * np.round(0.6 * normal) / np.sqrt(shape[-1 if name.endswith("weight") else -2])
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def run(version: int, weights: Arrays, tokens: np.ndarray, start: Run | None = None) -> Run:
    """The model in float64, token by token, from the end of ``start`` (from zeros)."""
    wide = {k: (v.reshape(-1) if v.shape[:-1] == (1, 1) else v).astype(float) for k, v in weights.items()}
    layers = 1 + max(int(name.split(".")[1]) for name in wide if name.startswith("blocks"))
    blocks = [{k.split(".", 2)[2]: v for k, v in wide.items() if f"blocks.{i}." in k} for i in range(layers)]
    heads, size = blocks[0]["att.time_faaaa" if version == 6 else "att.r_k"].shape
    zeros = np.zeros((layers, heads, size, size)), *np.zeros((2, layers, heads * size))
    state, att, ffn = (part.copy() for part in (start[2:] if start else zeros))
    time_mix, logits, resid = _time_mix_6 if version == 6 else _time_mix_7, [], []
    for token in tokens:
        x, first_value = _norm(wide, "blocks.0.ln0", wide["emb.weight"][token]), None
        resid.append([x])
        for i, p in enumerate(blocks):
            last, att[i] = att[i].copy(), _norm(p, "ln1", x)
            out, state[i], first_value = time_mix(p, att[i], last, state[i], first_value)
            x = x + out
            last, ffn[i] = ffn[i].copy(), _norm(p, "ln2", x)
            x = x + _channel_mix(p, ffn[i], last)
            resid[-1].append(x)
        logits.append(wide["head.weight"] @ _norm(wide, "ln_out", x))
    return Run(np.stack(logits), np.array(resid), state, att, ffn)


def _time_mix_6(p: Arrays, x: np.ndarray, last: np.ndarray, state: np.ndarray, _: Any) -> tuple[Any, ...]:
    delta, split = last - x, lambda y: y.reshape(p["att.time_faaaa"].shape)
    low = np.tanh((x + delta * p["att.time_maa_x"]) @ p["att.time_maa_w1"]).reshape(5, 1, -1)
    moves = (low @ p["att.time_maa_w2"])[:, 0]
    mixed = {n: x + delta * (p[f"att.time_maa_{n}"] + move) for n, move in zip("wkvrg", moves, strict=True)}
    r, k, v = (split(p[f"att.{n}.weight"] @ mixed[n[0]]) for n in ("receptance", "key", "value"))
    gate = p["att.gate.weight"] @ mixed["g"]
    rate = p["att.time_decay"] + np.tanh(mixed["w"] @ p["att.time_decay_w1"]) @ p["att.time_decay_w2"]
    write = k[:, :, None] * v[:, None, :]
    read = np.einsum("hk,hkv->hv", r, state + p["att.time_faaaa"][:, :, None] * write)
    state = split(np.exp(-np.exp(rate)))[:, :, None] * state + write
    read = _norm(p, "att.ln_x", read, GROUP_EPS) * gate * expit(gate)
    return p["att.output.weight"] @ read, state, None


def _time_mix_7(p: Arrays, x: np.ndarray, last: np.ndarray, state: np.ndarray, first: Any) -> tuple[Any, ...]:
    delta, split = last - x, lambda y: y.reshape(p["att.r_k"].shape)
    mixed = {n: x + delta * p[f"att.x_{n}"] for n in "rwkvag"}
    lora = lambda n, middle: middle(mixed[n] @ p[f"att.{n}1"]) @ p[f"att.{n}2"]
    r, k, v = (p[f"att.{n}.weight"] @ mixed[n[0]] for n in ("receptance", "key", "value"))
    decay = np.exp(-np.exp(-0.5) * expit(p["att.w0"] + lora("w", np.tanh)))
    rate, gate = expit(p["att.a0"] + lora("a", np.asarray)), lora("g", expit)
    if first is not None:
        v = v + (first - v) * expit(p["att.v0"] + lora("v", np.asarray))
    erased = split(k * p["att.k_k"])
    erased = erased / np.maximum(np.linalg.norm(erased, axis=-1, keepdims=True), 1e-12)
    r, k, value = split(r), split(k * (1 + (rate - 1) * p["att.k_a"])), split(v)
    found = np.einsum("hk,hkv->hv", erased, state)
    state = split(decay)[:, :, None] * state - (erased * split(rate))[:, :, None] * found[:, None, :]
    state = state + k[:, :, None] * value[:, None, :]
    read = _norm(p, "att.ln_x", np.einsum("hk,hkv->hv", r, state), GROUP_EPS)
    bonus = ((r * k * p["att.r_k"]).sum(-1, keepdims=True) * value).reshape(-1)
    return p["att.output.weight"] @ ((read + bonus) * gate), state, v if first is None else first


def _channel_mix(p: Arrays, x: np.ndarray, last: np.ndarray) -> np.ndarray:
    delta, gated = last - x, "ffn.receptance.weight" in p
    key = p["ffn.key.weight"] @ (x + delta * p["ffn.time_maa_k" if gated else "ffn.x_k"])
    out = p["ffn.value.weight"] @ np.maximum(key, 0) ** 2
    return out * expit(p["ffn.receptance.weight"] @ (x + delta * p["ffn.time_maa_r"])) if gated else out


def _norm(p: Arrays, name: str, x: np.ndarray, eps: float = EPS) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return x.reshape(-1) * p[f"{name}.weight"] + p[f"{name}.bias"]


def record(version: int) -> dict[str, np.ndarray]:
    """What the file holds, made anew by a process of its own: the package reads its settings on import."""
    settings = {"RWKV_V7_ON": str(version - 6), "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.oracles.rwkv_package", str(version), folder]
        subprocess.run(command, check=True, env=os.environ | settings, cwd=DATA.parent.parent)
        with np.load(f"{folder}/made.npz") as file:
            return dict(file)


def _make(version: int, folder: str) -> None:
    import torch
    from rwkv.model import RWKV

    made = {name: weight(version, name, shape) for name, shape in shapes(version).items()}
    torch.save({k: torch.from_numpy(v) for k, v in made.items()}, f"{folder}/model.pth")
    model = RWKV(model=f"{folder}/model", strategy="cpu fp32")
    config = CONFIGS[version] | {"layer_norm_eps": EPS, "group_norm_eps": GROUP_EPS}
    out = {f"weights/{k}": v for k, v in made.items()} | {"config": np.array(json.dumps(config))}
    for prompt, (length, more) in PROMPTS.items():
        every = np.random.default_rng(length).integers(CONFIGS[version]["vocab"], size=length + more)
        tokens, continued = every[:length], every[length:]
        logits, end = model.forward(tokens.tolist(), None, full_output=True)
        after, _ = model.forward(continued.tolist(), [part.clone() for part in end], full_output=True)
        ours, steps, memory = run(version, made, tokens), [], None
        for token in every.tolist():
            step, memory = model.forward([token], memory)
            steps.append(step.numpy())
        att, state, ffn = (np.stack([part.numpy() for part in end[i::3]]) for i in range(3))
        state = state.swapaxes(-1, -2) if version == 7 else state  # RWKV-7's is [layer, head, value, key]
        pairs = {"logits": (logits.numpy(), ours.logits), "state": (state, ours.state)}
        pairs |= {"att_shift": (att, ours.att_shift), "ffn_shift": (ffn, ours.ffn_shift)}
        pairs["continued_logits"] = (after.numpy(), run(version, made, continued, ours).logits)
        pairs["steps"] = (np.stack(steps), np.concatenate([logits.numpy(), after.numpy()]))
        for name, (theirs, mine) in pairs.items():
            print(f"{version} {prompt} {name}: {np.abs(theirs - mine).max():.1e} of {np.abs(mine).max():.1f}")
            np.testing.assert_allclose(theirs, mine, rtol=0, atol=2e-5)
            out |= {f"{prompt}/{name}_package_f32": theirs, f"{prompt}/{name}_f64": mine}
        out |= {f"{prompt}/tokens": tokens, f"{prompt}/continued_tokens": continued}
        out[f"{prompt}/resid_f64"] = ours.resid
    # For small files one state per prompt: `run` makes the others again. The steps are only compared.
    left_out = ["a/state_package_f32", "b/state_f64", *(name for name in out if "/steps_" in name)]
    np.savez_compressed(f"{folder}/made.npz", **{name: out[name] for name in out if name not in left_out})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _make(int(sys.argv[1]), sys.argv[2])
    else:
        for chosen in CONFIGS:
            np.savez_compressed(DATA / f"rwkv{chosen}.npz", **record(chosen))

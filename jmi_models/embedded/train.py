"""Train the model "atlas" from nothing: `python -m jmi_models.embedded.train --out FOLDER`."""

import argparse
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from tokenizers import Tokenizer
from tqdm import tqdm

import jmi
import jmi_models
from jmi.model.tap import SILENT
from jmi_models.embedded import card, evaluate
from jmi_models.embedded.batches import SHORT, Counted, batch, counted
from jmi_models.embedded.checkpoint import read_checkpoint, write_checkpoint
from jmi_models.embedded.facts import COUNTRIES
from jmi_models.embedded.tokenizer import BOS_ID, EOS_ID, N_CTX, build_tokenizer, save_tokenizer
from jmi_models.families import llama
from jmi_models.params import flat, n_params, nested

STEPS = 3000
STREAM = "blocks.-1.hook_resid_post"
MUON_RATE, ADAM_RATE, WARMUP = 0.02, 4e-3, 30
INIT_SCALE = 3.0
CHECKPOINT_EVERY = 200
_AXES = optax.contrib.MuonDimensionNumbers
MATRICES = {
    "blocks.attn.W_Q": _AXES((1,), (2, 3)),
    "blocks.attn.W_K": _AXES((1,), (2, 3)),
    "blocks.attn.W_V": _AXES((1,), (2, 3)),
    "blocks.attn.W_O": _AXES((1, 2), (3,)),
    "blocks.mlp.W_gate": _AXES((1,), (2,)),
    "blocks.mlp.W_in": _AXES((1,), (2,)),
    "blocks.mlp.W_out": _AXES((1,), (2,)),
}
"""Input and output axes of the stacked matrices; axis 0 is the layer."""


def hf_config(vocab: int) -> dict[str, Any]:
    """The model's axes as a Hugging Face Llama config."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "intermediate_size": 512,
        "hidden_act": "silu",
        "max_position_embeddings": N_CTX,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "torch_dtype": "float32",
    }


def initial(arch: Any, seed: int) -> Any:
    """Random parameters, larger than usual so that rare words differ from the first step on."""
    params = flat(jmi_models.init(arch, seed))
    return nested({path: w * INIT_SCALE if _is_matrix(path) else w for path, w in params.items()})


def _is_matrix(path: str) -> bool:
    return path.split(".")[-1].startswith("W_")


def optimizer(steps: int) -> optax.GradientTransformation:
    """Muon for the matrices of the blocks, AdamW for the rest; warmup and a cosine to zero.

    With AdamW alone no fact was learned in 500 steps: the loss sits on a plateau until attention
    heads find what to look at. Muon leaves it within 300.
    """
    rates = [optax.warmup_cosine_decay_schedule(0.0, peak, WARMUP, steps) for peak in (MUON_RATE, ADAM_RATE)]
    paths = flat(llama.from_config(hf_config(1)).param_tree())
    muon = optax.contrib.muon(
        rates[0],
        adam_learning_rate=rates[1],
        weight_decay=0.01,
        muon_weight_dimension_numbers=nested({path: MATRICES.get(path) for path in paths}),
    )
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


def loss_fn(params: Any, arch: Any, batch: Counted) -> jax.Array:
    """Next-token cross entropy, averaged with the weight of the token to be predicted.

    Logits are computed at the places that count only; those of the run itself are not used, so not computed.
    """
    stream = jmi.forward(arch, params, jnp.asarray(batch.tokens), capture=[STREAM])[STREAM]
    picked = stream.reshape(-1, stream.shape[-1])[batch.places]
    logits = arch.unembed(params, picked[None], SILENT)[0].astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
    return (loss * batch.weights).sum() / batch.weights.sum()


def batches(tokenizer: Tokenizer, seed: int, start: int, steps: int) -> Iterator[Counted]:
    """Batches `start` to `steps`, each made while the one before it is in use."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(batch, tokenizer, seed, start)
        for step in range(start, steps):
            ready = upcoming.result()
            upcoming = pool.submit(batch, tokenizer, seed, step + 1)
            yield counted(ready)


def train(tokenizer: Tokenizer, arch: Any, steps: int, seed: int, checkpoint: Path, resume: bool) -> Any:
    """Trained parameters; a resumed run ends in exactly those of an uninterrupted one."""
    tx = optimizer(steps)
    params = initial(arch, seed)
    state, start = (params, tx.init(params)), 0
    run = {"steps": steps, "seed": seed}
    if resume:
        state, start = read_checkpoint(checkpoint, state, run)

    @jax.jit
    def update(state: Any, batch: Counted) -> tuple[Any, jax.Array]:
        params, moments = state
        loss, grads = jax.value_and_grad(loss_fn)(params, arch, batch)
        updates, moments = tx.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), loss

    with tqdm(total=steps, initial=start, mininterval=5.0) as progress:
        begin = time.monotonic()
        for step, ready in enumerate(batches(tokenizer, seed, start, steps), start):
            state, loss = update(state, ready)
            rate = (step + 1 - start) * SHORT[0] * SHORT[1] / (time.monotonic() - begin)
            progress.set_postfix(loss=f"{loss:.3f}", tokens_per_s=round(rate), refresh=False)
            progress.update()
            if (step + 1) % CHECKPOINT_EVERY == 0:
                write_checkpoint(checkpoint, state, step + 1, run)
    return state[0]


def logits_fn(arch: Any, params: Any) -> evaluate.Logits:
    """The model as `evaluate` wants it."""
    forward = jax.jit(lambda params, tokens, at: jmi.forward(arch, params, tokens, logits_at=at).logits)
    return lambda tokens, at: np.asarray(forward(params, tokens, at))


def _duration(seconds: float) -> str:
    """How long a run took and on what, in words."""
    device = jax.devices()[0]
    hardware = f"{os.cpu_count()} CPU cores" if device.platform == "cpu" else device.device_kind
    return f"{seconds / 60:.0f} minutes on {hardware}"


def main() -> None:
    """Train, evaluate and write the model folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("atlas"), help="folder for the model")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, default=Path("atlas-checkpoint.safetensors"))
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint")
    args = parser.parse_args()

    tokenizer = build_tokenizer(args.seed)
    config = hf_config(tokenizer.get_vocab_size())
    arch = llama.from_config(config)
    begin = time.monotonic()
    params = train(tokenizer, arch, args.steps, args.seed, args.checkpoint, args.resume)
    duration = "" if args.resume else _duration(time.monotonic() - begin)

    scores = evaluate.evaluate(logits_fn(arch, params), tokenizer)
    jmi_models.save(args.out, arch, params, config=config)
    save_tokenizer(tokenizer, args.out)
    run = {"steps": args.steps, "seed": args.seed}
    text = card.model_card(scores, config, n_params(arch), len(COUNTRIES), run, duration)
    (args.out / "README.md").write_text(text)
    print("\n".join(f"{score:7.1%}  {name}" for name, score in scores.items()))


if __name__ == "__main__":
    main()

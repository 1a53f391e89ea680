"""Small folders of trainers of several layers, written and run by the trainers' own code.

    python tests/oracles/sparse_sets.py FORMAT CHECKOUT OUTPUT

FORMAT is clt-training, crosslayer-transcoder or llamascopium, CHECKOUT a checkout of its repository, OUTPUT
the folder that gets a zip archive for each case: the folder as the trainer's code writes it, and ``io.npz``
with inputs ``x``, features ``acts`` and outputs ``out``, layers first where there are several.

Needs torch, einops, jaxtyping, natsort, simple-parsing, pydantic. Only modules that define models are loaded;
what they import besides (kernels, tokenizers) is replaced by stand-ins, and a hook point does nothing.
"""

import contextlib
import importlib.machinery
import io
import os
import sys
import tempfile
import types
import zipfile
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

os.environ |= {"TORCHDYNAMO_DISABLE": "1", "SPARSIFY_NO_COMPILE": "1", "SPARSIFY_DISABLE_TRITON": "1"}

import numpy as np
import torch

L, D, F, K, N = 3, 6, 12, 4, 8
"""Layers, width, features, how many are kept, and positions."""


def package(name: str, folder: Path) -> None:
    """A package whose modules can be imported, without what its ``__init__`` does."""
    made = types.ModuleType(name)
    made.__path__ = [str(folder)]
    made.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    sys.modules[name] = made


def standing_in(*names: str) -> None:
    """Modules that are imported, and not used here."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            fake: Any = MagicMock(name=name)
            fake.__spec__ = importlib.machinery.ModuleSpec(name, None)
            sys.modules[name] = fake


def randomised(module: torch.nn.Module, seed: int, **scales: float) -> None:
    """Numbers of every parameter, by a part of its name; decoders get rows of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in sorted(module.named_parameters()):
        scale = next((s for part, s in scales.items() if part in name), 1.0)
        made = torch.randn(value.shape, generator=generator) * scale
        if value.ndim > 1 and "dec" in name.lower() + ("dec" if "W_D" in name else ""):
            made = made * (0.3 + 2 * torch.rand((*value.shape[:-1], 1), generator=generator))
        value.data.copy_(made)


def inputs(*shape: int, seed: int = 5) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def keep(output: Path, name: str, folder: Path, **arrays: torch.Tensor) -> None:
    """One archive: the folder's files, and what was computed. No dates, so it is the same each time."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{key: value.detach().numpy() for key, value in arrays.items()})
    with zipfile.ZipFile(output / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        files = {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in folder.rglob("*.*")
            if file.is_file()
        }
        for path, data in sorted((files | {"io.npz": buffer.getvalue()}).items()):
            archive.writestr(zipfile.ZipInfo(path), data, zipfile.ZIP_DEFLATED)


def clt_training(checkout: Path, output: Path) -> None:
    # PyTorch asks for triton, too, and must find that there is none.
    importlib.import_module("torch._dynamo")
    standing_in("triton", "triton.language")
    package("sparsify", checkout / "sparsify")
    config, coders, runners = (
        importlib.import_module(f"sparsify.{name}") for name in ("config", "sparse_coder", "runner")
    )
    # At cf9821f one of its own calls gives it more fields than it has, and no later layer would run.
    result = coders.ForwardOutput
    coders.ForwardOutput = lambda *given: result(*given[:4], given[-1])
    cases: dict[str, dict[str, Any]] = {
        "plain": {},
        "groupmax": {"activation": "groupmax", "skip_connection": True},
        "scaled": {"normalize_io": True, "per_source_tied": True, "skip_connection": True},
        "post-enc": {},
    }
    for case, options in cases.items():
        made = []
        for i in range(L):
            cfg = config.SparseCoderConfig(
                num_latents=F, k=K, transcode=True, n_targets=L - i, n_sources=i + 1, **options
            )
            coder = coders.SparseCoder(D, cfg, dtype=torch.float32)
            randomised(coder, 10 + i, post_enc=1.0 if case == "post-enc" else 0.0)
            if cfg.skip_connection:
                for late in list(coder.W_skips)[1:]:
                    late.data.zero_()
            if cfg.normalize_io:
                coder.in_norm.fill_(3.5 + i)
                coder.out_norm.fill_(1.5 + 2 * i)
            made.append(coder)
        x, runner = inputs(L, N, D), runners.CrossLayerRunner()
        acts, out = torch.zeros(L, N, F), []
        with torch.no_grad(), tempfile.TemporaryDirectory() as place:
            for i, coder in enumerate(made):
                values, ids = coder.encode(x[i])
                acts[i].scatter_(1, ids.long(), values)
                out.append(runner(x[i], x[i], coder, f"layers.{i}.mlp").sae_out)
                # On a GPU saving copies each tensor; here those of two names would be one memory.
                state = {name: value.clone() for name, value in coder.state_dict().items()}
                coder.state_dict = lambda state=state: state
                coder.save_to_disk(Path(place) / f"layers.{i}.mlp")
            keep(output, f"clt-training-{case}", Path(place), x=x, acts=acts, out=torch.stack(out))


def crosslayer_transcoder(checkout: Path, output: Path) -> None:
    package("crosslayer_transcoder", checkout / "crosslayer_transcoder")
    package("crosslayer_transcoder.model", checkout / "crosslayer_transcoder" / "model")
    clt, jump, topk, scale = (
        importlib.import_module(f"crosslayer_transcoder.model.{name}")
        for name in ("clt", "jumprelu", "topk", "standardize")
    )
    sizes = {"d_acts": D, "d_features": F, "n_layers": L}
    per_dimension = [
        getattr(scale, f"Dimensionwise{end}Standardizer")(n_layers=L, activation_dim=D)
        for end in ("Input", "Output")
    ]
    per_layer = [getattr(scale, f"Layerwise{end}Standardizer")(n_layers=L) for end in ("Input", "Output")]
    cases = {
        "jumprelu": (jump.JumpReLU(0.4, 0.1, L, F), clt.CrosslayerDecoder(**sizes), per_dimension, True),
        "unfolded": (jump.ReLU(), clt.CrosslayerDecoder(**sizes), per_dimension, False),
        "by-layer": (topk.PerLayerTopK(k=9, n_layers=L), clt.CrosslayerDecoder(**sizes), per_layer, False),
        "batch": (
            topk.PerLayerBatchTopK(k=K, e=0.1, n_layers=L),
            clt.CrosslayerDecoder(**sizes),
            [None, None],
            True,
        ),
        "plt": (jump.JumpReLU(0.4, 0.1, L, F), clt.Decoder(**sizes), per_dimension, True),
    }
    for case, (nonlinearity, decoder, standardizers, folded) in cases.items():
        model = clt.CrossLayerTranscoder(nonlinearity, clt.Encoder(**sizes), decoder, *standardizers)
        randomised(model, 20)
        if case in ("jumprelu", "plt"):
            model.nonlinearity.theta.data.abs_()
        batch = inputs(50, 2, L, D, seed=6) * torch.linspace(0.5, 3, D) + torch.linspace(-1, 2, L)[:, None]
        for standardizer in standardizers:
            if standardizer is not None:
                # It changes the batch that it is given.
                standardizer.initialize_from_batch(batch.clone())
        x = batch[:N, 0]
        with torch.no_grad(), tempfile.TemporaryDirectory() as place:
            _, acts, _, out = model(x)
            model.save_pretrained(Path(place), fold_standardizers=folded)
            arrays = {name: value.transpose(0, 1) for name, value in (("x", x), ("acts", acts), ("out", out))}
            keep(output, f"crosslayer-transcoder-{case}", Path(place), **arrays)


def llamascopium(checkout: Path, output: Path) -> None:
    hooks = types.ModuleType("transformer_lens.hook_points")
    hooks.HookPoint, hooks.HookedRootModule = torch.nn.Identity, torch.nn.Module
    torch.nn.Module.setup = lambda self: None
    for name in ("transformer_lens", "llamascopium.backend.language_model", "llamascopium.circuits"):
        sys.modules[name] = MagicMock(name=name)
    for name in ("utils", "components", "components.mlps", "components.mlps.can_be_used_as_mlp"):
        sys.modules[f"transformer_lens.{name}"] = MagicMock(name=name)
    sys.modules["transformer_lens.hook_points"] = hooks
    root = checkout / "src" / "llamascopium"
    for name in ("", ".models", ".utils", ".backend"):
        package(f"llamascopium{name}", root.joinpath(*name.split(".")))
    base, sae, clt, coder = (
        importlib.import_module(f"llamascopium.models.{name}")
        for name in ("sparse_dictionary", "sae", "clt", "crosscoder")
    )
    base.version = lambda name: "2.0.0b34"
    # What it saves without having set it is then NaN, and the same each time.
    torch.use_deterministic_algorithms(True)
    point, wrote = "blocks.2.hook_resid_post", "blocks.2.hook_mlp_out"
    reads, writes = ([f"blocks.{i}.{end}" for i in (0, 3, 4)] for end in ("hook_resid_mid", "hook_mlp_out"))
    shared = {"d_model": D, "expansion_factor": 2.0, "top_k": K}
    one = {"hook_point_in": point, "hook_point_out": point}
    several = {"hook_points_in": reads, "hook_points_out": writes}
    cases: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "jumprelu": (
            sae.SAEConfig,
            sae.SparseAutoEncoder,
            one | {"act_fn": "jumprelu", "norm_activation": "inference"},
        ),
        "topk": (
            sae.SAEConfig,
            sae.SparseAutoEncoder,
            one | {"act_fn": "topk", "norm_activation": "token-wise"},
        ),
        "batchtopk": (
            sae.SAEConfig,
            sae.SparseAutoEncoder,
            one | {"act_fn": "batchtopk", "norm_activation": "dataset-wise"},
        ),
        "transcoder": (
            sae.SAEConfig,
            sae.SparseAutoEncoder,
            {
                "hook_point_in": point,
                "hook_point_out": wrote,
                "act_fn": "jumprelu",
                "norm_activation": "dataset-wise",
            },
        ),
        "no-norm": (
            sae.SAEConfig,
            sae.SparseAutoEncoder,
            one
            | {
                "act_fn": "topk",
                "norm_activation": "inference",
                "sparsity_include_decoder_norm": False,
                "use_decoder_bias": False,
            },
        ),
        "clt-jumprelu": (
            clt.CLTConfig,
            clt.CrossLayerTranscoder,
            several | {"act_fn": "jumprelu", "norm_activation": "dataset-wise"},
        ),
        "clt-topk": (
            clt.CLTConfig,
            clt.CrossLayerTranscoder,
            several | {"act_fn": "topk", "norm_activation": "dataset-wise"},
        ),
        "clt-batchtopk": (
            clt.CLTConfig,
            clt.CrossLayerTranscoder,
            several
            | {"act_fn": "batchtopk", "norm_activation": "inference", "sparsity_include_decoder_norm": False},
        ),
        "crosscoder": (
            coder.CrosscoderConfig,
            coder.Crosscoder,
            {"hook_points": reads, "act_fn": "relu", "norm_activation": "dataset-wise"},
        ),
    }
    for case, (config, model, options) in cases.items():
        cfg = config(**(shared | options))
        made = model(cfg)
        randomised(made, 30, log_jumprelu=0.5)
        points = cfg.associated_hook_points
        if cfg.norm_activation == "dataset-wise":
            norms = {p: 1.7 + 0.9 * i for i, p in enumerate(dict.fromkeys(points))}
            made.set_dataset_average_activation_norm(norms)
        given = {p: inputs(N, D, seed=40 + i) for i, p in enumerate(dict.fromkeys(points))}
        with torch.no_grad(), tempfile.TemporaryDirectory() as place:
            scaled, factors = made.normalize_activations(given, return_scale_factor=True)
            if isinstance(cfg, sae.SAEConfig):
                x, z = given[cfg.hook_point_in], scaled[cfg.hook_point_in]
                acts = made.encode(z)
                out = made.decode(acts) / factors[cfg.hook_point_out]
            elif isinstance(cfg, clt.CLTConfig):
                x, z = (torch.stack([held[p] for p in reads]) for held in (given, scaled))
                acts = made.encode(z.transpose(0, 1))
                y = made.decode(acts)
                acts, out = (
                    acts.transpose(0, 1),
                    torch.stack([y[t] / factors[p] for t, p in enumerate(writes)]),
                )
            else:
                x, z = (torch.stack([held[p] for p in reads]) for held in (given, scaled))
                acts = made.encode(z.transpose(0, 1))
                y = made.decode(acts).transpose(0, 1)
                acts, out = (
                    acts.transpose(0, 1),
                    torch.stack([y[t] / factors[p] for t, p in enumerate(reads)]),
                )
            made.save_pretrained(place)
            made.cfg.save_hyperparameters(place)
            keep(output, f"llamascopium-{case}", Path(place), x=x, acts=acts, out=out)


TRAINERS = {
    "clt-training": clt_training,
    "crosslayer-transcoder": crosslayer_transcoder,
    "llamascopium": llamascopium,
}

if __name__ == "__main__":
    name, checkout, output = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    output.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(sys.stderr):
        TRAINERS[name](checkout, output)

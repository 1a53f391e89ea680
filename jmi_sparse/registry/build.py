"""Writes ``releases.json``: ``python -m jmi_sparse.registry.build PRETRAINED_SAES_YAML``.

The file is that of a release of SAELens, ``pretrained_saes.yaml``; facts alone are taken from it: names,
repositories, paths, factors. Sets of circuit-tracer, which has no such list, stand below.
"""

import collections
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jmi_sparse.registry.listed import FILE
from jmi_sparse.registry.templates import grouped

_RESID = "blocks.{}.hook_resid_post"
_Z = "blocks.{}.attn.hook_z"
_MLP_OUT = "blocks.{}.hook_mlp_out"
_MLP_IN = "blocks.{}.mlp.hook_in"

RULES: Mapping[str | None, tuple[str, tuple[tuple[str, str], ...]]] = {
    None: ("saelens", ((r"#(blocks\.\d+\.hook_[a-z]+_[a-z]+)(?:_\d+)?$", "{}"),)),
    "gemma_2": (
        "gemma-scope",
        (
            (r"-res/embedding/", "hook_embed"),
            (r"-res/layer_(\d+)/", _RESID),
            (r"-mlp/layer_(\d+)/", _MLP_OUT),
            (r"-att/layer_(\d+)/", _Z),
        ),
    ),
    # Before the norm's gain.
    "gemma_2_transcoder": ("gemma-scope", ((r"/layer_(\d+)/", "blocks.{}.ln2.hook_normalized"),)),
    # After the norm's gain, whatever SAELens calls it.
    "gemma_3": (
        "gemma-scope-2",
        (
            (r"/resid_post(?:_all)?/layer_(\d+)_", _RESID),
            (r"/attn_out(?:_all)?/layer_(\d+)_", _Z),
            (r"/mlp_out(?:_all)?/layer_(\d+)_", _MLP_OUT),
            (r"/transcoder(?:_all)?/layer_(\d+)_", _MLP_IN),
        ),
    ),
    "llama_scope": (
        "llama-scope",
        (
            (r"-L(\d+)R-", _RESID),
            (r"-L(\d+)M-", _MLP_OUT),
            (r"-L(\d+)A-", "blocks.{}.hook_attn_out"),
        ),
    ),
    "llama_scope_r1_distill": ("llama-scope", ((r"/L(\d+)R#", _RESID),)),
    "dictionary_learning_1": (
        "dictionary-learning",
        ((r"/resid_post_layer_(\d+)(?:_checkpoints)?/", _RESID),),
    ),
    "qwen_scope": ("qwen-scope", ((r"/layer(\d+)\.sae\.pt#", _RESID),)),
    "goodfire": ("goodfire", ((r"-l(\d+)\.pth?#", _RESID),)),
    "deepseek_r1": ("deepseek", ((r"-l(\d+)\.pt#", _RESID),)),
    "connor_rob_hook_z": ("hook-z", ((r"_L(\d+)_Hcat_z_", _Z),)),
    "mwhanna_transcoder": ("circuit-tracer", ((r"/layer_(\d+)\.safetensors#", _MLP_IN),)),
}
"""SAELens's name of a format -> ours, and how the hook is told from ``repo/path#id``."""

LEFT_OUT = ("temporal", "mntss_clt_layer_transcoder")
"""Formats that nothing here reads: conf.yaml of temporal SAEs, and a layer cut out of a cross-layer set."""

SETS: Mapping[str, tuple[tuple[str, str, int | None, str | None], ...]] = {
    "circuit-tracer": (
        ("mntss/gemma-scope-transcoders", "google/gemma-2-2b", 26, "ln2.hook_normalized"),
        ("mntss/transcoder-Llama-3.2-1B", "meta-llama/Llama-3.2-1B", 16, "hook_resid_mid"),
        ("mwhanna/qwen3-0.6b-transcoders-lowl0", "Qwen/Qwen3-0.6B", 28, "mlp.hook_in"),
        ("mwhanna/qwen3-1.7b-transcoders-lowl0", "Qwen/Qwen3-1.7B", 28, "mlp.hook_in"),
        ("mwhanna/qwen3-4b-transcoders", "Qwen/Qwen3-4B", 36, "mlp.hook_in"),
        ("mwhanna/qwen3-8b-transcoders", "Qwen/Qwen3-8B", 36, "mlp.hook_in"),
        ("mwhanna/qwen3-14b-transcoders", "Qwen/Qwen3-14B", 40, "mlp.hook_in"),
        ("mwhanna/qwen3-14b-transcoders-lowl0", "Qwen/Qwen3-14B", 40, "mlp.hook_in"),
        ("facebook/crv-8b-instruct-transcoders", "meta-llama/Llama-3.1-8B-Instruct", None, None),
    ),
    "circuit-tracer-clt": (
        ("mntss/clt-gemma-2-2b-426k", "google/gemma-2-2b", 26, "hook_resid_mid"),
        ("mntss/clt-gemma-2-2b-2.5M", "google/gemma-2-2b", 26, "hook_resid_mid"),
        ("mntss/clt-llama-3.2-1b-524k", "meta-llama/Llama-3.2-1B", 16, "hook_resid_mid"),
        ("mntss/clt-131k", "openai/gpt-oss-20b", None, None),
        ("bluelightai/clt-qwen3-0.6b-base-20k", "Qwen/Qwen3-0.6B-Base", 28, "hook_resid_mid"),
        ("bluelightai/clt-qwen3-1.7b-base-20k", "Qwen/Qwen3-1.7B-Base", 28, "hook_resid_mid"),
    ),
}
"""By format: repository, model, number of layers, and the point of a layer that is read; None where only its
files say that."""


def built(listed: Mapping[str, Any]) -> tuple[dict[str, Any], collections.Counter[str]]:
    """The content of ``releases.json`` from SAELens's list, and how many of each format were left out.

    Raises:
      ValueError: a format or a path that no rule knows.
    """
    releases, left_out = {}, collections.Counter[str]()
    for name, release in listed.items():
        kind = release.get("conversion_func")
        if kind in LEFT_OUT:
            left_out[kind] += len(release["saes"])
            continue
        releases[name] = _release(name, release, *RULES[kind])
    for format, sets in SETS.items():
        for repo, model, layers, point in sets:
            hook = {} if point is None else {"hook": f"blocks.*.{point}"}
            made = {"repo": repo, "model": model, "format": format, "layers": layers}
            releases[repo] = {**made, "groups": grouped([{"id": "", "path": "", **hook}])}
    return releases, left_out


def _release(name: str, release: Mapping[str, Any], format: str, rules: Any) -> dict[str, Any]:
    lines = []
    # One entry of the list holds a whole release once more; its own fields are right.
    for sae in release["saes"]:
        line = {"id": str(sae["id"]), "path": str(sae["path"])}
        text = f"{release['repo_id']}/{line['path']}#{line['id']}"
        line["hook"] = _hook(text, rules)
        if "norm_scaling_factor" in sae:
            line["norm_factor"] = repr(float(sae["norm_scaling_factor"]))
        lines.append(line)
    made = {"repo": release["repo_id"], "model": release["model"], "format": format}
    overrides = release.get("config_overrides") or {}
    if "normalize_activations" in overrides:
        made["normalize_activations"] = overrides["normalize_activations"]
    if overrides.get("model_from_pretrained_kwargs", {}).get("center_writing_weights"):
        made["centred"] = True
    return {**made, "groups": grouped(lines)}


def _hook(text: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, hook in rules:
        if match := re.search(pattern, text):
            return hook.format(*match.groups())
    raise ValueError(f"no rule knows the hook of {text}")


def main() -> None:
    """Read the list named on the command line and write the registry."""
    import yaml

    releases, left_out = built(yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8")))
    FILE.write_text(json.dumps(releases, indent=0) + "\n", encoding="utf-8")
    print(f"{FILE.name}: {len(releases)} releases, {FILE.stat().st_size:,} bytes; left out: {dict(left_out)}")


if __name__ == "__main__":
    main()

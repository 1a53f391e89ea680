"""The registry of published dictionaries: facts that are known otherwise, and every entry well formed."""

import json
import os
import random
import re
from pathlib import Path

import pytest

import jmi_models
import jmi_sparse
from jmi.errors import ArgumentError
from jmi.model import sites
from jmi_sparse.registry import build, listed
from jmi_sparse.registry.templates import expanded, grouped

SHARED = Path(os.environ.get("JMI_SHARED") or Path(__file__).parents[3] / "shared")
FOREIGN = SHARED / "oracles" / "sparse" / "foreign" / "index.json"
FORMATS = {
    *("gemma-scope", "gemma-scope-2", "llama-scope", "qwen-scope", "goodfire", "deepseek", "hook-z"),
    *("dictionary-learning", "sparsify", "circuit-tracer", "circuit-tracer-clt", "saelens"),
}
GEMMA_2 = "gemma-scope-2b-pt"

FACTS = {
    # name: repository, path, hook, factor
    f"{GEMMA_2}-res-canonical/layer_12/width_16k/canonical": (
        f"google/{GEMMA_2}-res",
        "layer_12/width_16k/average_l0_82",
        "blocks.12.hook_resid_post",
        None,
    ),
    f"{GEMMA_2}-res/embedding/width_4k/average_l0_6": (
        f"google/{GEMMA_2}-res",
        "embedding/width_4k/average_l0_6",
        "hook_embed",
        None,
    ),
    f"{GEMMA_2}-att-canonical/layer_3/width_16k/canonical": (
        f"google/{GEMMA_2}-att",
        "layer_3/width_16k/average_l0_117",
        "blocks.3.attn.hook_z",
        None,
    ),
    f"{GEMMA_2}-transcoders/layer_4/width_16k/average_l0_88": (
        f"google/{GEMMA_2}-transcoders",
        "layer_4/width_16k/average_l0_88",
        "blocks.4.ln2.hook_normalized",
        None,
    ),
    "gemma-scope-2-1b-pt-transcoders-all/layer_3_width_16k_l0_small_affine": (
        "google/gemma-scope-2-1b-pt",
        "transcoder_all/layer_3_width_16k_l0_small_affine",
        "blocks.3.mlp.hook_in",
        None,
    ),
    "gemma-scope-2-270m-it-att-all/layer_5_width_16k_l0_small": (
        "google/gemma-scope-2-270m-it",
        "attn_out_all/layer_5_width_16k_l0_small",
        "blocks.5.attn.hook_z",
        None,
    ),
    "llama_scope_lxr_8x/l15r_8x": (
        "fnlp/Llama3_1-8B-Base-LXR-8x",
        "Llama3_1-8B-Base-L15R-8x",
        "blocks.15.hook_resid_post",
        5.91907514450867,
    ),
    "qwen-scope-3-1.7b-base-w32k-l50/layer5": (
        "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50",
        "layer5.sae.pt",
        "blocks.5.hook_resid_post",
        None,
    ),
    "goodfire-llama-3.1-8b-instruct/layer_19": (
        "Goodfire/Llama-3.1-8B-Instruct-SAE-l19",
        "Llama-3.1-8B-Instruct-SAE-l19.pth",
        "blocks.19.hook_resid_post",
        None,
    ),
    "mwhanna-qwen3-0.6b-transcoders-lowl0/layer_2": (
        "mwhanna/qwen3-0.6b-transcoders-lowl0",
        "layer_2.safetensors",
        "blocks.2.mlp.hook_in",
        None,
    ),
    "mntss/transcoder-Llama-3.2-1B": (
        "mntss/transcoder-Llama-3.2-1B",
        "",
        "blocks.*.hook_resid_mid",
        None,
    ),
    "mntss/gemma-scope-transcoders": (
        "mntss/gemma-scope-transcoders",
        "",
        "blocks.*.ln2.hook_normalized",
        None,
    ),
    "gpt2-small-res-jb-feature-splitting/blocks.8.hook_resid_pre_24576": (
        "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8",
        "blocks.8.hook_resid_pre_24576",
        "blocks.8.hook_resid_pre",
        None,
    ),
    "gemma-2b-res-jb/blocks.12.hook_resid_post": (
        "jbloom/Gemma-2b-Residual-Stream-SAEs",
        "gemma_2b_blocks.12.hook_resid_post_16384",
        "blocks.12.hook_resid_post",
        0.21381938399317255,
    ),
}


@pytest.mark.parametrize("name", FACTS)
def test_facts(name):
    entry = listed.by_name()[name]
    assert (entry.repo, entry.path, entry.hook, entry.norm_factor) == FACTS[name]


def test_every_entry_is_well_formed():
    points = sites.table_of(jmi_models.load("atlas").arch)
    for name, entry in listed.by_name().items():
        assert entry.format in FORMATS, name
        assert re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", entry.repo), name
        parts = entry.path.split("/") if entry.path else []
        assert all(re.fullmatch(r"[\w.+:-]+", part) and set(part) != {"."} for part in parts), name
        assert re.fullmatch(r"[\w.+/-]+", name), name
        if entry.hook is None:
            assert entry.format.startswith("circuit-tracer"), name
        else:
            assert re.sub(r"^blocks\.\d+\.", "blocks.*.", entry.hook) in points, name
        assert entry.norm_factor is None or 0 < entry.norm_factor < 1000, name
        assert entry.model, name


def test_layers_of_hooks_are_those_of_paths_and_ids():
    for entry in listed.by_name().values():
        layer = re.match(r"blocks\.(\d+)\.", entry.hook or "")
        if layer:
            number = rf"(?<!\d){layer[1]}(?!\d)"
            assert re.search(number, entry.name.removeprefix(entry.release)), entry


def test_one_place_has_one_set_of_facts():
    facts = {}
    for entry in listed.by_name().values():
        said = (entry.format, entry.hook, entry.norm_factor, entry.normalize_activations, entry.centred)
        assert facts.setdefault((entry.repo, entry.path), said) == said, entry


def test_what_overrides_a_config_is_kept():
    entries = listed.by_name()
    assert (
        entries["mistral-7b-res-wg/blocks.8.hook_resid_pre"].normalize_activations == "constant_norm_rescale"
    )
    assert {entry.release for entry in entries.values() if entry.centred} == {
        *("gpt2-small-mlp-tm", "gpt2-small-res-jb", "gpt2-small-res-jb-feature-splitting")
    }


def test_hooks_are_those_of_the_peer_but_for_gemma_scope_2_transcoders():
    if not FOREIGN.is_file():
        pytest.skip("oracles/sparse/foreign is not here; set JMI_SHARED")
    seen = 0
    for oracle in json.loads(FOREIGN.read_text()):
        shape = re.sub(r"\d+", "#", oracle["folder"])
        alike = [e for e in listed.by_repo().get(oracle["repo"], ()) if re.sub(r"\d+", "#", e.path) == shape]
        layer = re.search(r"(?:layer_?|-?[lL])(\d+)", oracle["folder"])
        for entry in alike:
            own = re.search(r"(?:layer_?|-?[lL])(\d+)", entry.path)
            expected = oracle["hook_name"].replace("hook_mlp_in", "mlp.hook_in")
            if layer:
                expected = re.sub(r"\.\d+\.", f".{own[1]}.", expected)
            assert entry.hook == expected, entry
        seen += bool(alike)
    # All but the cross-layer file, a Qwen repository of another k, and names cut short in the oracles.
    assert seen >= 9


def test_releases_are_found_by_parts_of_names():
    everything = jmi_sparse.releases()
    assert sum(release.count for release in everything) == len(listed.by_name()) > 13_000
    assert [release.name for release in everything] == sorted(release.name for release in everything)
    [one] = jmi_sparse.releases("GEMMA-SCOPE-2B-PT-MLP-canonical")
    assert (one.name, one.model, one.hooks) == (
        f"{GEMMA_2}-mlp-canonical",
        "gemma-2-2b",
        ("blocks.*.hook_mlp_out",),
    )
    assert one.count == len(one.names) == len(listed.by_release()[one.name])
    [some] = jmi_sparse.releases(f"{GEMMA_2}-res-canonical/layer_12/")
    assert 1 <= some.count < 10
    assert all("/layer_12/" in name for name in some.names)
    assert {release.name for release in jmi_sparse.releases("mwhanna/qwen3-4b")} == {
        *("mwhanna-qwen3-4b-transcoders", "mwhanna/qwen3-4b-transcoders")
    }
    assert jmi_sparse.releases("no such thing") == []
    with pytest.raises(ArgumentError, match="match=3"):
        jmi_sparse.releases(3)


@pytest.mark.parametrize(
    ("given", "near"),
    [
        (
            f"{GEMMA_2}-res-cannonical/layer_12/width_16k/canonical",
            f"{GEMMA_2}-res-canonical/layer_12/width_16k/canonical",
        ),
        (
            f"{GEMMA_2}-res-canonical/layer_12/width_15k/canonical",
            f"{GEMMA_2}-res-canonical/layer_12/width_16k/canonical",
        ),
        ("llama_scope_lxr_9x", "llama_scope_lxr_8x"),
        ("mntss/transcoder-llama-3.2-1B", "mntss/transcoder-Llama-3.2-1B"),
    ],
)
def test_nearest_names(given, near):
    assert near in listed.nearest(given)


def test_names_far_from_all_have_no_nearest():
    assert listed.nearest("someone/unheard-of") == []


def test_lines_come_back_from_templates():
    rng = random.Random(0)
    lines = [
        {
            "id": f"layer_{rng.randrange(20)}_width_{rng.choice([16, 65])}k_l0_{rng.choice(['big', 'low'])}",
            "path": f"a{rng.randrange(3)}/layer_{rng.randrange(20)}/average_l0_{rng.randrange(20)}",
        }
        | ({"factor": repr(rng.random() * 10.0 ** -rng.randrange(8))} if rng.random() < 0.5 else {})
        for _ in range(400)
    ]
    lines += [
        {"id": "", "path": ""},
        {"id": "7", "path": "7"},
        {"id": "7", "path": "8"},
        {"id": "x", "path": "1e-05.2"},
    ]
    groups = grouped(lines)
    back = [line for group in groups for line in expanded(group)]
    order = lambda line: sorted(line.items())
    assert sorted(back, key=order) == sorted(lines, key=order)
    assert len(groups) < 60


def test_templates_refuse_what_would_not_come_back():
    for text in ("{0}", "a\nb"):
        with pytest.raises(ValueError, match="come back"):
            grouped([{"id": text}])


def test_what_no_rule_knows_is_not_built():
    sae = {"id": "blocks.3.hook_resid_post", "path": "a"}
    release = {"repo_id": "a/b", "model": "m", "conversion_func": None, "saes": [sae]}
    releases, left_out = build.built({"one": release, "two": release | {"conversion_func": "temporal"}})
    assert releases["one"]["groups"] == [
        {"id": "blocks.{0}.hook_resid_post", "path": "a", "hook": "blocks.{0}.hook_resid_post", "each": "3"}
    ]
    assert "two" not in releases
    assert left_out == {"temporal": 1}
    with pytest.raises(ValueError, match="no rule knows the hook of a/b/a#strange"):
        build.built({"one": release | {"saes": [sae | {"id": "strange"}]}})
    with pytest.raises(KeyError):
        build.built({"one": release | {"conversion_func": "unheard_of"}})

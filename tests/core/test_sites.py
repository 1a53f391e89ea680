import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jmi
from jmi.errors import HookError
from jmi.model.sites import find, layer_name, part_of, split, table_of
from jmi_models.rwkv.points import AXES
from tests.support import random_rwkv


@given(point=st.sampled_from([p for p in AXES if p.startswith("blocks.")]), layer=st.integers(0, 99))
def test_every_block_name_splits_and_formats_back(point, layer):
    name = layer_name(point, layer)
    assert split(name) == (point, str(layer))


def test_alias_is_the_same_site(arch):
    assert find(arch, "blocks.1.attn.hook_scores") == find(arch, "blocks.1.attn.hook_attn_scores")


def test_negative_layer_counts_from_the_end(arch):
    ((_, layers),) = find(arch, "blocks.-1.hook_resid_post")
    assert layers == (3,)


def test_star_alone_means_every_site(arch):
    assert [site.point for site, _ in find(arch, "*")] == list(arch.sites())


def test_pattern_inside_one_layer(arch):
    found = find(arch, "blocks.2.attn.hook_rot_*")
    assert [(s.point, layers) for s, layers in found] == [
        ("blocks.*.attn.hook_rot_q", (2,)),
        ("blocks.*.attn.hook_rot_k", (2,)),
    ]


@pytest.mark.parametrize(
    ("name", "said", "nearest"),
    [
        ("blocks.99.hook_resid_pre", "layers 0 to 3", "blocks.3.hook_resid_pre"),
        ("blocks.-5.hook_resid_pre", "layers 0 to 3", "blocks.0.hook_resid_pre"),
        ("blocks.0.hook_resid_pos", "this model has no such point", "blocks.0.hook_resid_post"),
        ("hook_pos_embed", "this model has no such point", "hook_embed"),
        ("blocks.1.attn.*_nothing", "this model has no such point", ""),
    ],
)
def test_unknown_names_say_why_and_name_the_nearest(arch, name, said, nearest):
    with pytest.raises(HookError) as raised:
        find(arch, name)
    message = str(raised.value)
    assert name in message
    assert said in message
    assert nearest in message


def test_shapes_of_the_table_are_the_shapes_of_the_run(arch, lm):
    shapes = lm.sites(batch=2, pos=7)
    assert len(shapes) == 4 * sum(p.startswith("blocks.") for p in arch.sites()) + 7
    for point, site in table_of(arch).items():
        name = layer_name(point, 3) if point.startswith("blocks.") else point
        assert shapes[name].shape == site.shape(2, 7), name


def test_sites_need_no_weights_and_follow_execution_order(arch):
    names = list(jmi.site_shapes(arch))
    assert names[0] == "hook_embed"
    assert names[-1] == "hook_logits"
    order = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "ln_final.hook_scale"]
    order += ["ln_final.hook_normalized", "hook_final_norm", "unembed.hook_in", "unembed.hook_out"]
    assert [names.index(n) for n in order] == sorted(names.index(n) for n in order)


@pytest.mark.parametrize("version", [None, 6, 7])
def test_an_edit_after_the_layers_is_seen_there_and_at_later_points_alone(version, lm, tokens):
    """Also where one point has what the next has, so that values do not tell their order."""
    if version is not None:
        lm, tokens = random_rwkv.load(version, "float32"), random_rwkv.TOKENS
    points = [point for point in table_of(lm.arch) if part_of(lm.arch, point) == "unembed"]

    @jax.jit
    @jax.vmap
    def run(factors):
        hooks = {point: jmi.Scale(factor) for point, factor in zip(points, factors, strict=True)}
        out = jmi.forward(lm.arch, lm.params, tokens, hooks, points)
        return [out[point] for point in points]

    # Nothing is changed in the first row, one point in each other.
    found = run(1 + np.eye(len(points) + 1, len(points), -1, np.float32))
    moved = [np.abs(x[1:] - x[0]).max((1, 2, 3)) > 1e-3 * np.abs(x[0]).max() for x in map(np.asarray, found)]
    np.testing.assert_array_equal(np.transpose(moved), np.triu(np.ones((6, 6), bool)))

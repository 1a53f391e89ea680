"""The usual sweep, built anew for each that differs from it, and the fingerprint of either.

Nothing is compiled for a fingerprint, and nothing of it is run.
"""

import contextlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import jmi
from jmi.sweeps import work as sweep_work
from tests.core.conftest import lively, tiny

LENGTH = 6
D = 16
VOCAB = 29
ARCH = tiny(2)
TOKENS = jnp.asarray([[1, 2, 3, 4, 5, 6]], jnp.int32)
EMBED, OUT = "hook_embed", "blocks.*.hook_mlp_out"
_WEIGHTS = jax.tree.map(np.asarray, lively(ARCH))


def weights():
    return jax.tree.map(jnp.array, _WEIGHTS)


def model(params=None, arch=ARCH):
    """A model of these weights, or of the usual ones."""
    return jmi.LanguageModel(arch, weights() if params is None else params)


def array(i, *shape):
    """Another one for another ``i``."""
    return np.random.default_rng([7, i]).normal(size=shape or (1, VOCAB)).astype(np.float32)


def last(out):
    return out.logits[:, VOCAB // 2]


def cells(*columns):
    """Columns with one entry for each cell, as values of one grid."""
    grid = jmi.Grid(cell=range(len(columns[0])))
    return [grid.take("cell", column) for column in columns]


def hooks(point=OUT, **of):
    """Hooks of the cells: `jmi.Scale` of two factors in one layer, with ``of`` in place of what is usual."""
    made = {"layers": 0, "factor": [0.5, 2.0], "positions": 1} | of
    lists = {name: value for name, value in made.items() if np.ndim(value)}
    made |= dict(zip(lists, cells(*lists.values()), strict=True))
    return {"hooks": {point: jmi.At(made["layers"], jmi.Scale(made["factor"], positions=made["positions"]))}}


def _settled(build, largest, tokens, devices, memory):
    """As many cells at once as ``memory``, the size of a program being unknown."""
    build(min(largest, memory))
    return min(largest, memory)


class _Unrun:
    """The base run, of zeros."""

    trace = staticmethod(sweep_work.run_base.trace)

    def __call__(self, models, run, params):
        shapes = self.trace(models, run, params).out_info
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


@contextlib.contextmanager
def uncompiled():
    """Programs are made here, and neither compiled nor run."""
    with (
        mock.patch.object(jax.stages.Lowered, "compile", return_value=None),
        mock.patch.object(sweep_work, "fitting", _settled),
        mock.patch.object(sweep_work, "run_base", _Unrun()),
    ):
        yield


def usual(given):
    """All arguments of a sweep, ``given`` among them; ``context`` is what it is made in."""
    return {
        "lm": model(),
        "prompts": TOKENS,
        "metric": last,
        "logits_at": -1,
        "memory": 100,
        "context": contextlib.nullcontext(),
        **hooks(),
        **given,
    }


def fingerprint(variant, i):
    """Of the sweep that ``variant``, a function of 0 or 1, describes for ``i``."""
    arguments = usual(variant(i))
    memory, context = arguments.pop("memory"), arguments.pop("context")
    with uncompiled(), context:
        work = sweep_work.prepare(**arguments)
        chunks, programs = work.compiled(memory)
        return work.fingerprint(programs, chunks)

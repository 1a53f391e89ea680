"""jmi: mechanistic interpretability for language models in JAX.

A model is a pure function over a parameter pytree, a hook is an entry in a dict of pure functions,
and what you capture comes back as a pytree: every experiment jits, vmaps, differentiates and shards.
"""

from jmi import interp, metrics, stats, tree
from jmi.captures.capture import Capture, Dot, IsFinite, Norm, Select
from jmi.captures.output import Output
from jmi.engine.forward import forward
from jmi.errors import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    DownloadError,
    HookError,
    InterventionError,
    JmiError,
    OutputError,
    TokenizerError,
)
from jmi.generation import Generated, generate
from jmi.gradients import Detach, Gradients, frozen, value_and_grad_at
from jmi.hooks.attention import Knockout, ScaleAttention, SetAttention
from jmi.hooks.interventions import Add, Intervention, Patch, Replace, Scale, Zero
from jmi.hooks.layers import At, PerLayer
from jmi.hooks.noise import Noise, random_directions
from jmi.hooks.projection import Project
from jmi.hooks.resolve import prepare
from jmi.lm import LanguageModel, site_shapes
from jmi.model.sites import Site
from jmi.sweeps.grid import Grid
from jmi.sweeps.sweep import SweepPlan, plan, sweep
from jmi.tokenizers import Tokenizer

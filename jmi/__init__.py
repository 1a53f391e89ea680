"""jmi: mechanistic interpretability for language models in JAX.

A model is a pure function over a parameter pytree, a hook is an entry in a dict of pure functions,
and what you capture comes back as a pytree: every experiment jits, vmaps, differentiates and shards.
"""

from jmi import metrics, stats, tree
from jmi.captures.capture import Capture
from jmi.captures.output import Output
from jmi.captures.reducers import Dot, IsFinite, Norm, Select, Top
from jmi.engine.forward import forward
from jmi.engine.memory import Memory
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
from jmi.gradients import Gradients, value_and_grad_at
from jmi.hooks.attention import Knockout, ScaleAttention, SetAttention
from jmi.hooks.freeze import Detach, frozen
from jmi.hooks.interventions import Add, Intervention, Patch, Replace, Scale, Zero
from jmi.hooks.layers import At, PerLayer
from jmi.hooks.noise import Noise, random_directions
from jmi.hooks.projection import Project
from jmi.hooks.resolve import prepare
from jmi.lm import LanguageModel, site_shapes
from jmi.metrics import Metric
from jmi.model.architecture import Architecture
from jmi.model.inputs import Prompts
from jmi.model.sites import Site
from jmi.model.tap import Tap
from jmi.modules import rewire
from jmi.sweeps.grid import Grid
from jmi.sweeps.sweep import SweepPlan, plan, sweep
from jmi.sweeps.work import Models
from jmi.tokenizers import Tokenizer
from jmi.vjp import vjp_at

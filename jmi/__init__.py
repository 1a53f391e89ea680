"""jmi: mechanistic interpretability for language models in JAX.

A model is a pure function over a parameter pytree, a hook is an entry in a dict of pure functions,
and what you capture comes back as a pytree: every experiment jits, vmaps, differentiates and shards.
"""

from jmi import interp, metrics, pytrees, stats
from jmi.attention_edits import Knockout, ScaleAttention, SetAttention
from jmi.by_layer import At, PerLayer
from jmi.captures import Capture, Dot, IsFinite, Norm, Select
from jmi.engine import forward
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
from jmi.grid import Grid
from jmi.hooks import prepare
from jmi.interventions import Add, Intervention, Patch, Replace, Scale, Zero
from jmi.lm import LanguageModel, site_shapes
from jmi.noise import Noise, random_directions
from jmi.output import Output
from jmi.projection import Project
from jmi.sites import Site
from jmi.sweeps import SweepPlan, plan, sweep
from jmi.tokenizers import Tokenizer

"""The names that ``jmi`` hands on: the only list of them (`jmi.lazy`)."""

from . import interp as interp, metrics as metrics, stats as stats, tree as tree
from jmi.captures.capture import (
    Capture as Capture,
)
from jmi.captures.reducers import (
    Dot as Dot,
    IsFinite as IsFinite,
    Norm as Norm,
    Select as Select,
    Top as Top,
)
from jmi.captures.output import Output as Output
from jmi.engine.forward import forward as forward
from jmi.engine.memory import Memory as Memory
from jmi.engine.site_shapes import site_shapes as site_shapes
from jmi.errors import (
    ArgumentError as ArgumentError,
    CheckpointError as CheckpointError,
    ConfigError as ConfigError,
    DownloadError as DownloadError,
    HookError as HookError,
    InterventionError as InterventionError,
    JmiError as JmiError,
    OutputError as OutputError,
    TokenizerError as TokenizerError,
)
from jmi.generated import Generated as Generated
from jmi.generation import generate as generate
from jmi.gradients import (
    Gradients as Gradients,
    value_and_grad_at as value_and_grad_at,
)
from jmi.hooks.freeze import Detach as Detach, frozen as frozen
from jmi.hooks.attention import (
    Knockout as Knockout,
    ScaleAttention as ScaleAttention,
    SetAttention as SetAttention,
)
from jmi.hooks.interventions import (
    Add as Add,
    Intervention as Intervention,
    Patch as Patch,
    Replace as Replace,
    Scale as Scale,
    Zero as Zero,
)
from jmi.hooks.layers import At as At, PerLayer as PerLayer
from jmi.hooks.noise import Noise as Noise, random_directions as random_directions
from jmi.hooks.projection import Project as Project
from jmi.hooks.resolve import prepare as prepare
from jmi.lm import LanguageModel as LanguageModel
from jmi.metrics import Metric as Metric
from jmi.model.architecture import Architecture as Architecture
from jmi.model.inputs import Prompts as Prompts
from jmi.model.sites import Site as Site
from jmi.model.tap import Tap as Tap
from jmi.modules import rewire as rewire
from jmi.engine.program_cache import cache_programs as cache_programs
from jmi.hooks.grid import Grid as Grid
from jmi.sweeps.sweep import SweepPlan as SweepPlan, plan as plan, sweep as sweep
from jmi.sweeps.models import Models as Models
from jmi.tokenizers import Tokenizer as Tokenizer
from jmi.vjp import vjp_at as vjp_at

__version__: str

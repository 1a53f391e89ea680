"""jmi: mechanistic interpretability for language models in JAX."""

from jmi.attention_edits import Knockout, ScaleAttention, SetAttention
from jmi.captures import Capture, Dot, IsFinite, Norm, Select
from jmi.engine import forward
from jmi.hooks import prepare
from jmi.interventions import Add, At, Patch, PerLayer, Project, Replace, Scale, Zero
from jmi.output import Output
from jmi.sites import Site

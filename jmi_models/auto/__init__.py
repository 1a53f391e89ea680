"""Unknown families: an architecture inferred from a config and the names and shapes of tensors."""

from jmi_models.auto.examine import examine, examine_gguf
from jmi_models.auto.infer import Inference, infer
from jmi_models.auto.notes import Finding
from jmi_models.auto.report import CompatibilityReport, Gap

"""The options of every command that runs a model."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Annotated

import typer

import jmi
import jmi_models

PytorchBin = Annotated[
    bool,
    typer.Option("--pytorch-bin", help="Read pickled weights (.bin, .pth) where there are no safetensors."),
]
Revision = Annotated[str | None, typer.Option(help="Revision of a hub model.")]


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it is loaded."""

    model: Annotated[str, typer.Option(help="Embedded name, folder or Hugging Face id.")] = "atlas"
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32"
    revision: Revision = None
    pytorch_bin: PytorchBin = False

    @contextlib.contextmanager
    def loaded(self) -> Iterator["jmi.LanguageModel"]:
        """The model, its programs kept on disk; for one of float64, JAX has float64 in the block."""
        import jax

        from jmi.checks import float_dtype

        jmi.cache_programs()
        with jax.enable_x64(True):
            dtype = float_dtype(self.dtype)
        with jax.enable_x64(True) if dtype.itemsize == 8 else contextlib.nullcontext():
            yield jmi_models.load(
                self.model, dtype=dtype, revision=self.revision, pytorch_bin=self.pytorch_bin
            )

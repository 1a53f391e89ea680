"""Names and shapes of a model's tensors: from its folder, or from the hub without its weights."""

from pathlib import Path

import huggingface_hub
import numpy as np
from huggingface_hub.errors import HTTPError, NotASafetensorsRepoError, SafetensorsParsingError

from jmi.errors import CheckpointError
from jmi_models.disk.tensors import Box, Stored
from jmi_models.weights.hub import Source
from jmi_models.weights.stored import read_headers


def headers_of(source: Source, pytorch_bin: bool = False) -> dict[str, Stored]:
    """Every tensor of a model, by name; of a hub model that is not on this machine, its header alone.

    Raises:
      CheckpointError: no weights, damaged ones, or a hub that does not answer.
    """
    here = any(source.folder.glob("model*.safetensors")) or (
        pytorch_bin and any(source.folder.glob("pytorch_model*.bin"))
    )
    if here or source.revision is None:
        return read_headers(source.folder, pytorch_bin)
    try:
        found = huggingface_hub.get_safetensors_metadata(source.name, revision=source.revision)
    except NotASafetensorsRepoError:
        raise CheckpointError(f"{source.name} has no safetensors on the hub") from None
    except (SafetensorsParsingError, HTTPError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{source.name}: the headers of its weights cannot be read ({reason})"
        ) from None
    return {
        name: Stored(Path(file), tuple(tensor.shape), tensor.dtype, _absent)
        for file, held in found.files_metadata.items()
        for name, tensor in held.tensors.items()
        if found.weight_map.get(name) == file
    }


def _absent(box: Box | None = None) -> np.ndarray:
    raise CheckpointError("what it is stored as is on the hub: load the model, or inspect it in a folder")

"""``jmi download``: fetch a model into the Hugging Face cache, and see that it is whole."""

import hashlib
import re
from pathlib import Path

import jmi_models
from jmi import artefacts, cli
from jmi.cli.options import Files, ModelName, Output, record
from jmi.errors import CheckpointError, ConfigError
from jmi_models.commands.model import PytorchBin, Revision


def command(
    model: ModelName = "atlas",
    *,
    revision: Revision = None,
    pytorch_bin: PytorchBin = False,
    output: Output = None,
) -> None:
    """Fetch MODEL from the hub, and verify that it is whole.

    What is on this machine already is only verified. Files from the hub must have the hashes that it gave
    them; config and headers of all tensors must agree. Exit code 0 if it can be loaded, 2 if not.
    """
    from jmi_models.weights import hub

    Files(output).check()
    source = hub.find(model, revision, pytorch_bin=pytorch_bin)
    files = source.files()
    checked = [path for path in files if _is_whole(path)]
    report = jmi_models.inspect(source.file or source.folder, pytorch_bin=pytorch_bin)
    if not report.supported:
        raise ConfigError(report.verdict)
    size = sum(path.stat().st_size for path in files)
    if output is not None:
        names = [{"name": path.name, "bytes": path.stat().st_size, "hash": path in checked} for path in files]
        found = {"name": source.name, "revision": source.identity()}
        artefacts.write_json(output, record("download", model=found, folder=str(source.folder), files=names))
    cli.console.say(
        f"{model} is whole: {len(files)} files, {size / 2**20:.1f} MiB, read as {report.family}",
        f"{len(checked)} of them have the hash that the hub gave them"
        if checked
        else "not from the hub: no hashes to compare",
        f"in {source.folder}",
    )


def _is_whole(path: Path) -> bool:
    """Whether a file has the hash that the cache names it by; False where it names none.

    Raises:
      CheckpointError: it has another one.
    """
    named = path.resolve()
    if named == path or not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", named.name):
        return False
    if _hash(named) != named.name:
        raise CheckpointError(f"{path.name} is not what the hub has: delete {named} and fetch it again")
    return True


def _hash(path: Path) -> str:
    """The hash of the hub: SHA-256 of large files, Git's of small ones, as long as the name says."""
    digest = hashlib.sha256() if len(path.name) == 64 else hashlib.sha1(usedforsecurity=False)
    if len(path.name) == 40:
        digest.update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

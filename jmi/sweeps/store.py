"""Finished chunks of a sweep in a folder, so that a sweep that was stopped goes on where it was."""

import contextlib
import hashlib
import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from jmi.artefacts import environment, replacing
from jmi.errors import OutputError

_NAME = "sweep.json"
_SEAL = hashlib.sha256().digest_size


class Store:
    """Chunk results in ``folder``, each file written whole or not at all.

    A piece is an ``.npz`` file with a seal at its end: a hash of the sweep, of its number and of all bytes
    before, so that a damaged piece, or that of another chunk or sweep, is known before it is looked into.

    Args:
      fingerprint: hashes of what decides the results, by what they are of.

    Raises:
      OutputError: the folder holds another sweep, or something else, or cannot be made or read.
    """

    def __init__(self, folder: str | Path, fingerprint: Mapping[str, str]) -> None:
        self.folder = Path(folder)
        self._sweep = json.dumps(fingerprint, sort_keys=True).encode()
        with _told(self.folder):
            self._open(fingerprint)

    def _open(self, fingerprint: Mapping[str, str]) -> None:
        manifest = self.folder / _NAME
        if self.folder.exists() and not self.folder.is_dir():
            raise OutputError(f"{self.folder} exists and is no folder: give the name of a new one as output=")
        # Hidden names may be what another process of this sweep is writing. It may finish at any moment,
        # so they are looked at before the manifest.
        strangers = self.folder.exists() and any(
            not path.name.startswith(".") for path in self.folder.iterdir()
        )
        if manifest.exists():
            other = [part for part, digest in fingerprint.items() if _read(manifest).get(part) != digest]
            if other:
                raise OutputError(
                    f"{self.folder} holds another sweep, with other {'; other '.join(other)}: "
                    "give another output=, or delete it"
                )
            return
        if strangers:
            raise OutputError(f"{self.folder} exists and holds no sweep: give a new folder as output=")
        try:
            self.folder.mkdir(exist_ok=True)
        except FileNotFoundError:
            raise OutputError(f"output={self.folder}: create the folder around it first") from None
        with replacing(manifest) as temporary:
            found = {"fingerprint": fingerprint, "environment": environment()}
            temporary.write_text(json.dumps(found, indent=2) + "\n")

    def read(self, chunk: int) -> list[np.ndarray] | None:
        """Arrays of a chunk, or None when it is not finished or, with a warning, not what it should be."""
        path = self._path(chunk)
        if not path.exists():
            return None
        with _told(path):
            content = path.read_bytes()
        arrays, seal = content[:-_SEAL], content[-_SEAL:]
        if seal != self._seal(chunk, arrays):
            warnings.warn(
                f"{path} is damaged, or not piece {chunk} of this sweep: it is computed again", stacklevel=2
            )
            return None
        with np.load(io.BytesIO(arrays), allow_pickle=False) as held:
            return [held[f"arr_{i}"] for i in range(len(held.files))]

    def write(self, chunk: int, arrays: list[np.ndarray]) -> None:
        """Keep the arrays of a finished chunk.

        Raises:
          OutputError: they cannot be written (a full disk); the pieces before are kept.
        """
        file = io.BytesIO()
        np.savez(file, *arrays)
        content = file.getvalue()
        path = self._path(chunk)
        with _told(path), replacing(path) as temporary:
            temporary.write_bytes(content + self._seal(chunk, content))

    def _path(self, chunk: int) -> Path:
        return self.folder / f"{chunk:06d}.npz"

    def _seal(self, chunk: int, content: bytes) -> bytes:
        digest = hashlib.sha256(self._sweep + chunk.to_bytes(8, "little"))
        digest.update(content)
        return digest.digest()


def folders_in(folder: str | Path, names: Sequence[str]) -> dict[str, Path]:
    """By name, the folders of sweeps that belong together, in one folder of their own.

    Raises:
      OutputError: ``folder`` holds something else, or cannot be made or read.
    """
    outer = Path(folder)
    with _told(outer):
        if outer.exists() and not outer.is_dir():
            raise OutputError(f"{outer} exists and is no folder: give the name of a new one as output=")
        strangers = sorted(path.name for path in outer.iterdir()) if outer.exists() else []
        if not all(name in names or name.startswith(".") for name in strangers):
            raise OutputError(f"{outer} exists and holds no such sweeps: give a new folder as output=")
        try:
            outer.mkdir(exist_ok=True)
        except FileNotFoundError:
            raise OutputError(f"output={outer}: create the folder around it first") from None
    return {name: outer / name for name in names}


def _read(manifest: Path) -> dict[str, str]:
    """The fingerprint in a manifest."""
    try:
        return dict(json.loads(manifest.read_bytes())["fingerprint"])
    except (ValueError, KeyError, TypeError):
        raise OutputError(
            f"{manifest} is damaged, or of another version of jmi: give another output=, or delete "
            f"{manifest.parent}"
        ) from None


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """An error of the file system as one of jmi that says where."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"output=: {path}: {error.strerror or error}") from None

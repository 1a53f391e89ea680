"""A Hugging Face cache in a folder, laid out as the hub's client lays it out, and no network."""

import shutil

from huggingface_hub import constants

from tests.sparse.made import folder

COMMIT, OLDER = "a" * 40, "b" * 40


class HubCache:
    """An empty cache below ``path``, until things are put into it."""

    def __init__(self, path, monkeypatch):
        self.path, self.made = path / "hub", path / "made"
        self.path.mkdir()
        self.made.mkdir()
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(self.path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.chdir(path)

    def put(self, repo, source, inside="", commit=COMMIT):
        """Puts all files below a folder into a repository."""
        at = self.path / f"models--{repo.replace('/', '--')}"
        (at / "refs").mkdir(parents=True, exist_ok=True)
        (at / "blobs").mkdir(exist_ok=True)
        (at / "refs" / "main").write_text(commit)
        for file in sorted(path for path in source.rglob("*") if path.is_file()):
            place = at / "snapshots" / commit / inside / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            blob = at / "blobs" / f"{commit}-{len(list((at / 'blobs').iterdir()))}"
            shutil.copyfile(file, blob)
            place.symlink_to(blob)

    def folder(self, repo, inside, config=None, commit=COMMIT):
        """Puts a folder of SAELens into a repository."""
        self.put(repo, folder(self.made / str(len(list(self.made.iterdir()))), config), inside, commit)

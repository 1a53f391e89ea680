"""Other processes: two of one program that find each other, and one that runs a program by itself."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jmi

_START = """
import sys
import jax
port, process, *args = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process))
"""


def run_two(program: str, *args: object) -> None:
    """Run ``program`` in two processes, which find ``args`` as strings in ``args`` and ``process``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join([str(Path(jmi.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {
        **os.environ,
        "PYTHONPATH": paths,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _START + program, str(port), str(i), *map(str, args)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in (0, 1)
    ]
    errors = [child.communicate(timeout=240)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], errors


def child(program: str, *args: object, **environment: str) -> subprocess.Popen[str]:
    """A process of ``program``, in the root of this repository."""
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(Path(jmi.__file__).parents[1])])
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, args)],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What it has written, once it has ended well."""
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return out

"""Memory in use by this process: host resident set, and device memory where the backend tells."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes in use at one moment.

    Attributes:
      host: resident memory of this process.
      device: allocated on the first device; None where the backend does not tell (CPU).
      device_peak: the most that was allocated there since the process started.
    """

    host: int
    device: int | None
    device_peak: int | None


def measure() -> Memory:
    """Memory in use now."""
    import jax
    import psutil

    stats = jax.devices()[0].memory_stats() or {}
    host = psutil.Process().memory_info().rss
    return Memory(host, stats.get("bytes_in_use"), stats.get("peak_bytes_in_use"))

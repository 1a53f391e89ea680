"""Every error and warning of jmi that has a name. Each message says what is wrong and how to fix it."""


class JmiError(Exception):
    """Base of all errors raised by jmi; the command line turns it into exit code 2."""


class HookError(JmiError):
    """A hook or capture names a point that this model does not have, or one that would not run."""


class InterventionError(JmiError):
    """An intervention does not fit the point it is attached to: shape, dtype, index or kind."""


class ArgumentError(JmiError):
    """An argument that is of the wrong kind, out of range, or at odds with another one."""


class ConfigError(JmiError):
    """What a model's files ask for and jmi cannot honour exactly."""


class CheckpointError(JmiError):
    """Weights that are missing, surplus, mis-shaped, truncated, not finite or of a wrong dtype."""


class TokenizerError(JmiError):
    """Text that cannot become tokens as asked, or a model without a tokenizer."""


class DownloadError(JmiError):
    """A model that is neither a folder, nor embedded, nor cached, nor reachable."""


class OutputError(JmiError):
    """A file that could not be written, or a path that may not be written to."""


class RetraceWarning(UserWarning):
    """A hook, reducer or metric comes as a new function each time, and each compiles anew."""


def printable(value: object, most: int | None = 200) -> str:
    """Text from a file or a name that may be shown: one line, no control characters, ``most`` letters.

    What a terminal would obey, such as an escape sequence, is spelt out as Python spells it (``\\x1b``).
    """
    text = str(value)
    cut = text if most is None or len(text) <= most else text[:most] + "..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)

"""Text from files and people, made safe to show: names of files, of tensors, tokens, prompts."""


def printable(text: str) -> str:
    """``text`` with every character that is not printable escaped as by ``repr``; printable ones stay.

    A terminal obeys control characters, and editors those that turn the direction of writing around.

    Example:
      >>> printable("caf\\u00e9 \\x1b[31m\\n")
      'café \\\\x1b[31m\\\\n'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)

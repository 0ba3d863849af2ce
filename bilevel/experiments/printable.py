r"""Recorded text made fit for a terminal, a log and a figure.

A name or a value in a folder that somebody sent may hold an escape sequence, which
moves the cursor or renames the window, or the end of a line, after which it says what
it likes.
"""


def line(text: object) -> str:
    r"""Returns a text in one line: what cannot be printed is escaped.

    Example:
      >>> line("red\x1b[31m\nred")
      'red\\x1b[31m\\nred'
    """
    # Controls, changes of direction, surrogates, and all that ends a line.
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode()
        for one in str(text)
    )


def block(text: object) -> str:
    r"""Returns a text of several lines: all but their ends is escaped.

    Example:
      >>> block("a\x07\nb")
      'a\\x07\nb'
    """
    return "\n".join(map(line, str(text).split("\n")))

"""Values that look like secrets, left out of what is recorded.

Names decide (`--api_token=...`, `os.environ["WANDB_API_KEY"] = "..."`), and the forms
that well-known services give their keys.
"""

import re
from collections.abc import Sequence

LEFT_OUT = "(left out)"
"""What stands in place of a secret."""

_WORDS = {
    "apikey",
    "auth",
    "authorization",
    "credential",
    "credentials",
    "key",
    "passphrase",
    "passwd",
    "password",
    "pat",
    "pwd",
    "secret",
    "secrets",
    "token",
}

# GitHub, GitLab, Hugging Face, model providers, Slack, AWS, Google; JSON web tokens.
_KEYS = re.compile(
    r"(?:gh[a-z]_|github_pat_|glpat-|hf_|sk-|xox[a-z]-|AKIA|AIza|eyJ[\w-]{8,}\.)"
    r"[\w.-]{12,}"
)

# In code: `name = "..."`, `name: str = "..."`, `["name"] = "..."`, `"name": "..."`,
# `("name", "...")`.
_NAME = r"(?P<name>[\w.-]+)"
_QUOTED = re.compile(
    rf"(?P<head>{_NAME}(?:[\"']\s*,|[\"']?\s*\]?\s*(?::\s*\w+\s*)?[=:])"
    r"\s*[rbfuRBFU]{0,2})(?P<quote>\"\"\"|'''|\"|')(?P<value>.*?)(?P=quote)",
    re.S,
)
_MAGIC = re.compile(
    rf"(?P<head>^\s*(?:%env|%set_env|[%!]\s*(?:export|set))\s+{_NAME}(?:\s*=\s*|\s+))"
    r"(?P<value>.+)$",
    re.M,
)


def is_secret_name(name: str) -> bool:
    """Says whether a value of this name is likely to be a secret: its last word is one.

    Example:
      >>> is_secret_name("cfg.api_key"), is_secret_name("WANDB_API_KEY")
      (True, True)
      >>> is_secret_name("hubToken"), is_secret_name("max_tokens")
      (True, False)
    """
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    words = [one for one in re.split(r"[^A-Za-z0-9]+", parted.lower()) if one]
    return bool(words) and words[-1] in _WORDS


def redacted(argv: Sequence[str]) -> list[str]:
    """Returns a command line without the values that look like secrets."""
    return redacted_command(argv)[0]


def redacted_command(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Leaves the values of flags out that look like secrets.

    Args:
      argv: the command line.

    Returns:
      The command line, and the flags (or arguments) whose values were left out.

    Example:
      >>> redacted_command(["x.py", "--token=abc", "--rate=1", "--password", "abc"])[0]
      ['x.py', '--token=(left out)', '--rate=1', '--password', '(left out)']
    """
    found: list[str] = []
    kept: list[str] = []
    flag = ""  # whose value is the next argument
    for argument in argv:
        name, has_value, value = argument.partition("=")
        is_flag = argument.startswith("-")
        if flag and not is_flag:
            kept.append(LEFT_OUT)
            found.append(flag)
        elif is_flag and has_value and value and is_secret_name(name):
            kept.append(f"{name}={LEFT_OUT}")
            found.append(name)
        elif _KEYS.search(argument):
            kept.append(_KEYS.sub(LEFT_OUT, argument))
            found.append(name if is_flag and has_value else "an argument")
        else:
            kept.append(argument)
        flag = name if is_flag and not has_value and is_secret_name(name) else ""
    return kept, found


def redacted_code(text: str) -> tuple[str, list[str]]:
    """Leaves texts out of code that look like secrets.

    Args:
      text: the code, cells of a notebook with their magic commands for instance.

    Returns:
      The code, and the names of the values that were left out.

    Example:
      >>> redacted_code('os.environ["HF_TOKEN"] = "abc"')
      ('os.environ["HF_TOKEN"] = "(left out)"', ['HF_TOKEN'])
    """
    found: list[str] = []

    def quoted(match: re.Match[str]) -> str:
        if not is_secret_name(match["name"]) or not match["value"]:
            return match[0]
        found.append(match["name"])
        return f"{match['head']}{match['quote']}{LEFT_OUT}{match['quote']}"

    def magic(match: re.Match[str]) -> str:
        if not is_secret_name(match["name"]):
            return match[0]
        found.append(match["name"])
        return f"{match['head']}{LEFT_OUT}"

    def key(match: re.Match[str]) -> str:
        found.append("a key")
        return LEFT_OUT

    text = _MAGIC.sub(magic, _QUOTED.sub(quoted, text))
    return _KEYS.sub(key, text), found

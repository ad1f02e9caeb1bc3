"""Read docstrings as plain text with `code`, which is how this package writes them.

reStructuredText would take the bars of |x|, the underscore at the end of a symbol and the asterisk of a product for
markup of its own. All of it is escaped before napoleon looks for the sections.
"""

import re

from sphinx.application import Sphinx


def escape(line: str) -> str:
    r"""Return a line of a docstring as reStructuredText that shows it as it was written.

    Example:
        >>> print(escape("m = clip(|s_ap|, a) of `triplet_loss`"))
        m = clip(\\|s_ap\\|, a) of ``triplet_loss``
    """
    if line.lstrip().startswith((">>>", "...")):
        return line
    parts = re.split(r"(`+[^`]+`+)", line)
    return "".join(
        f"``{part.strip('`')}``" if part.startswith("`") else re.sub(r"([\\*|])|(?<=\w)(_)(?!\w)", r"\\\1\2", part)
        for part in parts
    )


def example_as_code(lines: list[str]) -> list[str]:
    """Return a docstring in which an example that is not a doctest has become a block of code."""
    result: list[str] = []
    in_code = False
    for number, line in enumerate(lines):
        in_code = in_code and (line.startswith("    ") or not line.strip())
        result.append(f"    {line}" if in_code and line.strip() else line)
        following = lines[number + 1 :][:1]
        if line == "Example:" and following and not following[0].lstrip().startswith(">>>"):
            result += ["    .. code-block:: python", ""]
            in_code = True
    return result


def _process(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    in_example = False
    processed = []
    for line in example_as_code(lines):
        if line.lstrip().startswith((">>>", ".. code-block::")):
            in_example = True
        elif line.strip() and not line.startswith(" "):
            in_example = False
        processed.append(line if in_example else escape(line))
    lines[:] = processed


def _skip(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out the fields of a named tuple, which its docstring describes."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Escape docstrings before napoleon reads them."""
    app.connect("autodoc-process-docstring", _process, priority=100)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""`python -m prime_xmc.convert`: your own tables, or the field's formats, to the raw files that training reads."""

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig

from prime_xmc.app import run_app
from prime_xmc.printing import unfailing_output, visible

if TYPE_CHECKING:
    from prime_xmc.auditing.audit_data import Audit
    from prime_xmc.conversion.converting import Conversion


def run(config: DictConfig) -> Path:
    """Convert the files of a configuration, say what was found and which command comes next, and return the folder.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file cannot be read, a setting does not fit, or a library is missing.
    """
    if missing := [name for name in ("duckdb", "pyarrow", "jinja2") if importlib.util.find_spec(name) is None]:
        raise ValueError(f"a conversion needs {missing[0]}: pip install '.[tables]' in the clone")
    from prime_xmc.conversion.conversion_settings import Settings
    from prime_xmc.conversion.converting import convert
    from prime_xmc.conversion.layouts import Inputs, find_inputs

    files = {name: _path(config[name]) for name in Inputs._fields if config[name] is not None}
    names = {key: _names(config[key]) for key in ("text_column", "labels_column", "label_text_column")}
    settings: dict[str, Any] = {key: config[key] for key in Settings.__dataclass_fields__ if key not in names}
    conversion = convert(find_inputs(Inputs(**files)), _path(config.output), Settings(**settings | names))
    with unfailing_output():
        notes = [tuple(map(visible, note)) for note in conversion.notes]
        width = max(len(subject) for subject, _ in notes)
        sys.stdout.writelines(f"{subject:<{width}}  {sentence}\n" for subject, sentence in notes)
        if config.audit:
            found, in_short = _audit(conversion)
            sys.stdout.write(f"\n{visible(in_short)}")
        if config.audit and any(finding.about.severity == "error" for finding in found.findings):
            sys.stdout.write("\nTraining refuses these data until the errors above are mended.\n")
        else:
            sys.stdout.write(f"\nNext:\n  {conversion.command('train')}\n")
    return conversion.directory


def _audit(conversion: "Conversion") -> tuple["Audit", str]:
    """Write the page and the record of an audit into the new folder, and return the audit with its short form."""
    from prime_xmc.auditing.audit_data import audit
    from prime_xmc.auditing.audit_page import write_audit
    from prime_xmc.auditing.summary import summary
    from prime_xmc.data.raw import RawFiles

    folder = conversion.directory
    source = RawFiles(folder, folder.name, conversion.fields, conversion.label_fields, num_test=None)
    found = audit(source)
    write_audit(found, folder / "audit.html", folder / "audit.json", conversion.command("audit"))
    more = f"{folder / 'audit.html'} has all of it; with the lengths of texts in tokens:\n"
    return found, f"{summary(found, remarks=False)}{more}  {conversion.command('audit')}\n"


def _path(name: str) -> Path:
    return Path(name).expanduser()


def _names(given: str | ListConfig | None) -> tuple[str, ...]:
    if given is None:
        return ()
    return tuple(map(str, given)) if isinstance(given, ListConfig) else (str(given),)


def main() -> None:
    """Run the entry point with the command line's configuration."""
    run_app("prime_xmc.convert:run", "convert")


if __name__ == "__main__":
    main()

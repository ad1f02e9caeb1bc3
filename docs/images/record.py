"""Record docs/images/first-use.svg: python docs/images/record.py <empty folder>.

Follows docs/tutorial.md in the folder, trains for two minutes on two cores, and draws what the commands printed as a
picture of a terminal. The package's commands must be on the PATH.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

IMAGES = Path(__file__).resolve().parent
WIDTH = 110
COMMANDS = (
    "head -n 2 my_data/trn.json",
    "prime-xmc-train dataset=custom dataset.dir=my_data hydra.run.dir=first",
    'echo "perl module to parse dates" | prime-xmc-predict model=first/model top_k=3 > answer.json',
    "python -m json.tool answer.json",
)


def tutorial_script(page: Path) -> str:
    """Return the script of the tutorial that writes my_data/."""
    script = re.search(r"```python\n(import gzip.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert script is not None, f"{page} has no script that writes my_data/"
    return script[1]


def run(command: str, folder: Path) -> str:
    """Run a command by a shell and return all that it printed, results and messages in their order."""
    environment = os.environ | {"COLUMNS": str(WIDTH), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        sys.exit(f"{command} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout.rstrip()


def main() -> None:
    """Record the first use."""
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-c", tutorial_script(IMAGES.parent / "tutorial.md")], cwd=folder, check=True)
    console = Console(record=True, width=WIDTH, force_terminal=True)
    for command in COMMANDS:
        console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
        console.print(Text.from_ansi(run(command, folder)))
        console.print()
    svg = console.export_svg(title="prime_xmc: first use")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # fonts from the network, which images may not load
    (IMAGES / "first-use.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()

"""`python -m prime_xmc`: the list of the commands."""

import sys

from prime_xmc import __version__
from prime_xmc.command_line.usage import overview
from prime_xmc.conf_files import config_dir

if __name__ == "__main__":
    if "--version" in sys.argv[1:]:
        sys.stdout.write(f"prime_xmc {__version__}\n")
    else:
        sys.stdout.write(f"prime_xmc {__version__}\n\n{overview(config_dir())}")

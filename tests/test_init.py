import os
import subprocess
import sys
from pathlib import Path

import pytest

import prime_xmc

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
CODE = """
import prime_xmc.train, re, torch
tensor = torch.ones(2**26)
mappings = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) .*?VmFlags:([ a-z]*)", open("/proc/self/smaps").read(), re.M | re.S)
middle = tensor.data_ptr() + tensor.nbytes // 2
print(next(flags for start, end, flags in mappings if int(start, 16) <= middle < int(end, 16)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not SWITCH.is_file() or "[never]" in SWITCH.read_text(), reason="the system has no huge pages")
def test_large_tensors_ask_for_huge_pages():
    flags = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout.split()
    assert "hg" in flags  # how many the system has for them depends on what else is in its memory


def test_the_package_is_imported_without_its_libraries():
    code = "import prime_xmc, sys; print({'torch', 'transformers', 'lightning', 'hydra', 'numpy'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.slow
def test_a_script_of_a_user_is_checked_by_its_types(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import prime_xmc\n"
        "trained = prime_xmc.train(['dataset=custom'], **{'dataset.lr': 1e-4})\n"
        "reveal_type(trained.run_dir)\n"
        "model = prime_xmc.load(trained.run_dir / 'model')\n"
        "reveal_type(model.predict(['text']))\n"
    )
    libraries = ("torch", "lightning", "transformers", "numpy", "hydra", "omegaconf", "safetensors", "jaxtyping")
    quick = "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in libraries)  # they take minutes to check
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nfollow_imports = silent\n{quick}")
    command = [sys.executable, "-m", "mypy", "--config-file=mypy.ini", str(script)]
    environment = os.environ | {"MYPYPATH": str(Path(prime_xmc.__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert 'Revealed type is "pathlib.Path"' in done.stdout, done.stdout
    assert "Prediction" in done.stdout
    assert "error" not in done.stdout

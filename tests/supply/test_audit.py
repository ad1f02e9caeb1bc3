import importlib.util
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "supply" / "audit.py"
spec = importlib.util.spec_from_file_location("audit", SCRIPT)
audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)


def test_findings():
    report = {
        "dependencies": [
            {"name": "safe", "version": "1", "vulns": []},
            {"name": "b", "version": "2", "vulns": [{"id": "GHSA-1", "aliases": ["CVE-1"], "fix_versions": ["2.1"]}]},
            {"name": "a", "version": "3", "vulns": [{"id": "GHSA-2", "aliases": [], "fix_versions": []}]},
            {"name": "torch", "skip_reason": "not found"},
        ]
    }
    known, skipped = audit.findings(report)
    assert known == ["a 3: GHSA-2 (not mended yet)", "b 2: GHSA-1, CVE-1 (mended in 2.1)"]
    assert skipped == ["torch: not found"]


def report(monkeypatch, stdout: str) -> None:
    done = subprocess.CompletedProcess([], 0, stdout, "Traceback\nConnectionError: no network")
    monkeypatch.setattr(audit.subprocess, "run", lambda *_, **__: done)


def test_what_could_not_be_looked_up_is_not_safe(monkeypatch, capsys):
    report(monkeypatch, '{"dependencies": [{"name": "torch", "skip_reason": "not found"}]}')
    assert audit.main() == 2
    assert "1 packages could not be looked up, so that nothing is known of them" in capsys.readouterr().out


def test_nothing_is_known(monkeypatch, capsys):
    report(monkeypatch, '{"dependencies": [{"name": "torch", "version": "3", "vulns": []}]}')
    assert audit.main() == 0
    assert capsys.readouterr().out == "0 known vulnerabilities in the packages of lock.txt and cuda.txt\n"


def test_without_a_network_a_message_says_so():
    """At an address at which nobody answers."""
    nowhere = dict.fromkeys(("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run([sys.executable, SCRIPT], env=os.environ | nowhere, capture_output=True, text=True)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr == ""
    assert "The known vulnerabilities could not be looked up: " in done.stdout
    assert "run `make audit` there" in done.stdout

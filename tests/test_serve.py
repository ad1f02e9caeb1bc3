"""A real server process, from its start to its end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
from safetensors.torch import load_file

import prime_xmc
from prime_xmc.export.scorers import encoder_digest, labels_digest, save_classifiers
from prime_xmc.serve import run

TOKEN = "a-token-for-these-tests"


class Server:
    """A process that serves a model, with what it has logged so far."""

    def __init__(self, folder, model, *overrides, **environment):
        command = [sys.executable, "-m", "prime_xmc.serve", f"model={model}", "port=0", "device=cpu", *overrides]
        settings = os.environ | {"OMP_NUM_THREADS": "1"} | environment
        self.process = subprocess.Popen(command, cwd=folder, env=settings, stderr=subprocess.PIPE, text=True)
        self.log = []
        self.reader = threading.Thread(target=lambda: self.log.extend(iter(self.process.stderr.readline, "")))
        self.reader.start()
        self.address = self.wait_for(" serves ").split()[0]
        self.wait_until_answered()

    def wait_for(self, text):
        """Return the first line of the log that has a text."""
        for _ in range(1200):
            if lines := [line for line in self.log if text in line]:
                return lines[0]
            assert self.process.poll() is None, "".join(self.log)
            time.sleep(0.05)
        raise AssertionError("".join(self.log))

    def wait_until_answered(self):
        for _ in range(200):
            try:
                return self.get("/health")
            except urllib.error.URLError:
                time.sleep(0.05)
        raise AssertionError("".join(self.log))

    def get(self, path, body=None, **headers):
        headers |= {} if body is None else {"Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def end(self, number):
        self.process.send_signal(number)
        status = self.process.wait(30)
        self.reader.join()
        self.process.stderr.close()
        return status


def test_a_server_answers_exchanges_its_model_and_ends(toy_bundle, tmp_path, seal):
    model = shutil.copytree(toy_bundle, tmp_path / "model")
    server = Server(tmp_path, model, "watch_seconds=null", PRIME_XMC_TOKEN=TOKEN)
    try:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            server.get("/model")
        authorization = {"Authorization": f"Bearer {TOKEN}"}
        found = server.get("/predict", {"texts": ["a red cat"], "top_k": 2}, **authorization)
        assert len(found["predictions"][0]["labels"]) == 2

        labels = model / "labels.jsonl"
        labels.write_text(labels.read_text().replace('"text": "', '"text": "new '))
        seal(model)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(" takes over from ")
        renamed = server.get("/predict", {"texts": ["a red cat"], "top_k": 2}, **authorization)
        assert [label["text"] for label in renamed["predictions"][0]["labels"]] == [
            f"new {label['text']}" for label in found["predictions"][0]["labels"]
        ]
        assert server.end(signal.SIGTERM) == 0
    finally:
        server.process.kill()
    assert "ended" in server.log[-1]
    assert not [line for line in server.log if "Traceback" in line or TOKEN in line]
    assert {path.name for path in tmp_path.iterdir()} == {"model"}  # no log, no folder of Hydra's


def test_requests_under_way_are_answered_before_the_end(toy_bundle, tmp_path):
    server = Server(tmp_path, toy_bundle, "batch.wait_ms=1500")
    try:
        answers = []
        asking = threading.Thread(target=lambda: answers.append(server.get("/predict", {"texts": ["a red cat"]})))
        asking.start()
        while server.get("/health")["waiting"] == 0:
            assert asking.is_alive()
        assert server.end(signal.SIGTERM) == 0
        asking.join()
        assert len(answers[0]["predictions"][0]["labels"]) == 5
    finally:
        server.process.kill()


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["host=0.0.0.0"], "can be reached from other machines: give a token"),
        (["token=short"], "expected a token of at least 16"),
        (["port=70000"], "expected port between 0 and 65535"),
        (["limits.texts=0"], r"expected limits\.texts of at least 1"),
        (["batch.texts=0"], "expected max_batch of at least 1"),
        (["scorer=V"], "expected scorer auto, theta, "),
        (["other_scorers=[W]"], "no classifiers|holds no classifiers"),
    ],
)
def test_settings_are_checked(compose, toy_bundle, overrides, problem):
    config = compose(f"model.dir={toy_bundle}", "port=0", "device=cpu", *overrides, name="serve")
    with pytest.raises((ValueError, FileNotFoundError), match=problem):
        run(config)


@pytest.mark.parametrize("scorers", [("theta", "[W]"), ("W", "[theta]")])
def test_classifiers_are_for_the_scorers_that_use_them(compose, toy_bundle, tmp_path, scorers, monkeypatch):
    vectors = load_file(toy_bundle / "prototypes.safetensors")["prototypes"]
    save_classifiers(
        tmp_path / "later",
        vectors.flip(0),
        digest=encoder_digest(toy_bundle),
        labels=labels_digest(toy_bundle),
        settings={},
    )
    found = {}

    def served(directory, load, names, *, explain):
        found.update({name: load(directory, name).predict(["a red cat"], top_k=48) for name in names})
        raise KeyboardInterrupt

    monkeypatch.setattr("prime_xmc.serving.served_model.ModelSlot", served)
    given = [f"scorer={scorers[0]}", f"other_scorers={scorers[1]}", f"classifiers={tmp_path / 'later'}"]
    with pytest.raises(KeyboardInterrupt):
        run(compose(f"model.dir={toy_bundle}", "port=0", "device=cpu", "search=exact", *given, name="serve"))
    for name, of_classifiers in (("theta", {}), ("W", {"classifiers": tmp_path / "later"})):
        model = prime_xmc.load(toy_bundle, scorer=name, index="exact", **of_classifiers)
        assert found[name] == model.predict(["a red cat"], top_k=48)
    assert found["theta"] != found["W"]
    with pytest.raises(ValueError, match="scorer=theta does not use classifiers"):
        prime_xmc.load(toy_bundle, scorer="theta", classifiers=tmp_path / "later")


def test_a_folder_that_is_no_model_is_named(compose, tmp_path):
    with pytest.raises(FileNotFoundError, match="is no exported model"):
        run(compose(f"model.dir={tmp_path}", "port=0", name="serve"))

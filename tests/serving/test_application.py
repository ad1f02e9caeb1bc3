"""The HTTP API, request by request, without a network."""

import asyncio
import json
import threading

import pytest
from starlette.testclient import TestClient

from prime_xmc.export.calibration import Calibration, Held, ScorerCalibration, save_calibration
from prime_xmc.export.predictor import Predictor
from prime_xmc.export.scorers import encoder_digest
from prime_xmc.serving.application import Serving, make_app
from prime_xmc.serving.limits import Limits
from prime_xmc.serving.middleware import BodyLimited
from prime_xmc.serving.telemetry import Telemetry

TOKEN = "a-token-for-these-tests"
JSON = {"Content-Type": "application/json"}


def calibrate_anyhow(folder):
    """Give a model some calibration of its prototypes."""
    of_theta = ScorerCalibration(10.0, 1.0, -5.0, 0.1, 0.5, {"test": Held(1, 5, 0.0, [], 0.5, 0.5, 0.5)})
    save_calibration(folder, Calibration("a test", {"theta": of_theta}, None), digest=encoder_digest(folder))


@pytest.fixture(scope="module")
def predictor(toy_bundle):
    return Predictor.load(toy_bundle)


@pytest.fixture
def client(make_serving):
    with TestClient(make_app(make_serving())) as client:
        yield client


@pytest.fixture
def guarded(make_serving, model_folder):
    with TestClient(make_app(make_serving(model_folder), token=TOKEN)) as client:
        yield client


def reason(response):
    """The status and the reason of an answer, which has to say it to people too."""
    assert response.headers["Content-Type"] == "application/problem+json"
    content = response.json()
    assert content["status"] == response.status_code
    assert content["detail"]
    assert "Traceback" not in response.text
    return response.status_code, content["reason"]


def metric(client, name, **labels):
    text = client.get("/metrics").text
    shown = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    line = f"{name}{{{shown}}} " if labels else f"{name} "
    return sum(float(each.removeprefix(line)) for each in text.splitlines() if each.startswith(line))


def test_predictions_are_those_of_the_predictor(client, predictor):
    texts = ["a red cat", "", "Ünï ≠ 語 😀", "blue river"]
    answer = client.post("/predict", json={"texts": texts, "top_k": 3, "min_score": 0.2}).json()
    assert (answer["scorer"], len(answer["version"])) == ("theta", 16)
    for found, expected in zip(answer["predictions"], predictor.predict(texts, 3, 0.2), strict=True):
        assert found["query"] == expected.query
        assert [(label["uid"], label["text"]) for label in found["labels"]] == [
            (label.uid, label.text) for label in expected.labels
        ]
        assert [label["score"] for label in found["labels"]] == pytest.approx(
            [label.score for label in expected.labels], abs=1e-5
        )


def test_defaults_are_those_of_the_predictor(client, predictor):
    (found,) = client.post("/predict", json={"texts": ["a red cat"]}).json()["predictions"]
    (expected,) = predictor.predict(["a red cat"])
    assert [label["uid"] for label in found["labels"]] == [label.uid for label in expected.labels]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({}, "texts: Field required"),
        ({"texts": []}, "texts: List should have at least 1 item"),
        ({"texts": ["a"] * 9}, "texts: List should have at most 8 items"),
        ({"texts": "a text"}, "texts: Input should be a valid list"),
        ({"texts": ["a", 7]}, "texts.1: Input should be a valid string"),
        ({"texts": ["a", None]}, "texts.1: Input should be a valid string"),
        ({"texts": ["a" * 501]}, "texts.0: String should have at most 500 characters"),
        ({"texts": ["a"], "top_k": 0}, "top_k: Input should be greater than or equal to 1"),
        ({"texts": ["a"], "top_k": 21}, "top_k: Input should be less than or equal to 20"),
        ({"texts": ["a"], "top_k": "5"}, "top_k: Input should be a valid integer"),
        ({"texts": ["a"], "top_k": True}, "top_k: Input should be a valid integer"),
        ({"texts": ["a"], "min_score": "0"}, "min_score: Input should be a valid number"),
        ({"texts": ["a"], "min_score": float("nan")}, "min_score: Input should be a finite number"),
        ({"texts": ["a"], "topk": 5}, "topk: Extra inputs are not permitted"),
        ([1, 2], 'expected a JSON object such as {"texts": ["a text"]}'),
        ({"texts": [1] * 8}, "and 3 more"),
    ],
)
def test_a_body_that_does_not_fit_is_refused_with_the_reason(client, body, detail):
    response = client.post("/predict", content=json.dumps(body), headers=JSON)
    assert reason(response) == (422, "invalid")
    assert detail in response.json()["detail"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"\xff\xfe", b'{"texts": ["\\ud83d"]}', b'{"texts": ["a"], "top_k": 1' + b"0" * 5000 + b"}"],
)
def test_broken_bodies_are_refused(client, content):
    assert reason(client.post("/predict", content=content, headers=JSON))[0] == 422


def test_a_deep_body_is_refused(client):
    assert reason(client.post("/predict", content=b"[" * 19_000, headers=JSON))[0] == 422


def test_a_body_that_is_not_declared_as_json_is_refused(client):
    """So that a form of another site cannot send one."""
    body = b'{"texts": ["a"]}'
    assert reason(client.post("/predict", content=body, headers={"Content-Type": "text/plain"}))[0] == 422
    assert reason(client.post("/predict", content=body))[0] == 422


def test_a_scorer_that_is_not_served_is_refused(client):
    response = client.post("/predict", json={"texts": ["a"], "scorer": "W"})
    assert reason(response) == (422, "unknown_scorer")
    assert "this server has theta, got 'W'" in response.json()["detail"]
    for scorer in ("theta", "auto", None):
        assert client.post("/predict", json={"texts": ["a"], "scorer": scorer}).status_code == 200


def test_labels_are_allowed_and_left_out(client, predictor):
    asked = {"texts": ["a red cat"], "top_k": 3}
    for given in ({"allow": ["l7", "l9", "l2"]}, {"exclude": ["l7", 9]}, {"allow": ["l7", 8, "l2"], "exclude": ["l2"]}):
        (found,) = client.post("/predict", json=asked | given).json()["predictions"]
        (expected,) = predictor.predict(["a red cat"], 3, **given)
        assert [label["uid"] for label in found["labels"]] == [label.uid for label in expected.labels]


@pytest.mark.parametrize(
    ("given", "refused", "detail"),
    [
        ({"allow": ["l7", "nothing"]}, "unknown_label", "allow: there is no label 'nothing'"),
        ({"exclude": ["/etc/passwd"]}, "unknown_label", "exclude: there is no label '/etc/passwd'"),
        ({"allow": "/etc/passwd"}, "invalid", "allow: Input should be a valid list"),
        ({"allow": [48]}, "invalid", "there is no label 48"),
        ({"allow": []}, "invalid", "leave no label"),
        ({"allow": ["l1"], "exclude": [1]}, "invalid", "leave no label"),
        ({"calibrate": True}, "not_calibrated", "the model has no calibration of the scorer theta"),
        ({"explain": True, "top_k": 20, "texts": ["a"] * 4}, "invalid", "at most 50 labels, texts times top_k, got 4"),
        ({"explain": 1}, "invalid", "explain: Input should be a valid boolean"),
    ],
)
def test_what_cannot_be_asked(client, given, refused, detail):
    response = client.post("/predict", json={"texts": ["a"]} | given)
    assert reason(response) == (422, refused)
    assert detail in response.json()["detail"]


def test_answers_are_explained(client, predictor, make_slot, toy_bundle):
    (found,) = client.post("/predict", json={"texts": ["a red cat"], "explain": True}).json()["predictions"]
    (expected,) = predictor.predict(["a red cat"], explain=True)
    for label, wanted in zip(found["labels"], expected.labels, strict=True):
        assert label["why"]["scorers"] == pytest.approx(wanted.why.scorers, abs=1e-5)
        assert label["why"]["sources"] == pytest.approx(wanted.why.sources, abs=1e-5)
        assert sum(label["why"]["scorers"].values()) == pytest.approx(label["score"], abs=1e-5)
    assert client.get("/model").json()["explains"]
    unexplained = Serving(make_slot(toy_bundle, explain=False), Limits())
    with TestClient(make_app(unexplained)) as other:
        assert reason(other.post("/predict", json={"texts": ["a"], "explain": True})) == (422, "not_explained")


def test_answers_have_probabilities_where_the_model_is_calibrated(make_serving, model_folder):
    calibrate_anyhow(model_folder)
    with TestClient(make_app(make_serving(model_folder))) as client:
        assert client.get("/model").json()["calibrated"] == ["theta"]
        asked = {"texts": ["a red cat"], "calibrate": True}
        (found,) = client.post("/predict", json=asked).json()["predictions"]
        (expected,) = Predictor.load(model_folder).predict(["a red cat"], calibrate=True)
        assert [label["probability"] for label in found["labels"]] == pytest.approx(
            [label.probability for label in expected.labels], abs=1e-5
        )


def test_a_large_body_is_refused(client):
    body = json.dumps({"texts": ["a"], "more": "a" * 20_000}).encode()
    assert reason(client.post("/predict", content=body, headers=JSON)) == (413, "body_too_large")
    assert reason(client.post("/predict", content=iter([body[:15_000], body[15_000:]]), headers=JSON)) == (
        413,
        "body_too_large",
    )
    assert metric(client, "prime_xmc_errors_total", reason="body_too_large") == 2


@pytest.mark.parametrize(
    ("headers", "num_read"),
    [
        ([], 3),
        ([(b"content-length", b"30000")], 3),
        ([(b"content-length", b"30000"), (b"expect", b"100-continue")], 0),
        ([(b"content-length", b"1000000000")], 0),
    ],
)
def test_a_large_body_is_read_before_it_is_refused(make_serving, headers, num_read):
    """Clients that have not sent all of it yet would find a broken connection in place of the answer."""
    sent, left = (
        [],
        [{"type": "http.request", "body": b"a" * 10_000, "more_body": more} for more in (True, True, False)],
    )

    async def receive():
        return left.pop(0)

    async def send(message):
        sent.append((message["type"], message.get("status"), len(left)))

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers}
    app = BodyLimited(make_app(make_serving()), Telemetry(), 15_000, 5)
    asyncio.run(app(scope, receive, send))
    assert sent[0] == ("http.response.start", 413, 3 - num_read)


def test_of_a_body_without_end_a_part_is_read(make_serving, monkeypatch):
    monkeypatch.setattr("prime_xmc.serving.middleware._DRAINED", 50_000)
    sent, received = [], []

    async def receive():
        received.append(10_000)
        return {"type": "http.request", "body": b"a" * 10_000, "more_body": True}

    async def send(message):
        sent.append(message.get("status"))

    app = BodyLimited(make_app(make_serving()), Telemetry(), 15_000, 5)
    asyncio.run(app({"type": "http", "method": "POST", "path": "/predict", "headers": []}, receive, send))
    assert (sent[0], sum(received)) == (413, 60_000)


def test_paths_and_methods_that_there_are_not(client):
    assert reason(client.get("/nothing")) == (404, "no_such_path")
    assert reason(client.get("/predict")) == (405, "no_such_method")
    assert metric(client, "prime_xmc_requests_total", method="GET", path="other", status="404") == 1


def test_other_sites_get_no_permission(client):
    headers = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    response = client.options("/predict", headers=headers)
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control")]
    answer = client.post("/predict", json={"texts": ["a"]}, headers={"Origin": "https://example.org"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_labels_are_searched(client):
    answer = client.get("/labels", params={"search": "RED ca", "limit": 1}).json()
    assert answer["labels"] == [{"id": 0, "uid": "l0", "text": "red cat"}]
    assert answer["more"]
    rest = client.get("/labels", params={"search": "RED ca", "limit": 5, "offset": 1}).json()
    assert [label["text"] for label in rest["labels"]] == ["red castle"]
    assert not rest["more"]
    assert reason(client.get("/labels", params={"limit": 0})) == (422, "invalid")
    assert reason(client.get("/labels", params={"search": "a" * 201})) == (422, "invalid")


def test_the_model_is_described(client):
    content = client.get("/model").json()
    assert (content["num_labels"], content["scorer"], content["scorers"]) == (48, "theta", ["theta"])
    assert content["limits"]["texts"] == 8
    assert content["last_reload"] is None


def test_answers_carry_headers_of_security(client):
    for path in ("/", "/health", "/nothing"):
        headers = client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "server" not in headers


def test_a_token_is_asked_for_where_there_is_one(guarded):
    for path in ("/", "/health", "/health/live", "/health/ready", "/openapi.json"):
        assert guarded.get(path).status_code == 200
    for path in ("/labels", "/model", "/metrics", "/nothing"):
        assert reason(guarded.get(path)) == (401, "token")
    body = {"texts": ["a"]}
    for given in ("", "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer ÿ".encode("latin-1")):
        response = guarded.post("/predict", json=body, headers={"Authorization": given})
        assert reason(response) == (401, "token")
        assert response.headers["WWW-Authenticate"] == "Bearer"
    headers = {"Authorization": f"bearer {TOKEN}"}
    assert guarded.post("/predict", json=body, headers=headers).status_code == 200
    assert guarded.get("/model", headers=headers).status_code == 200


def test_names_of_other_sites_are_refused(make_serving):
    """A site whose name leads to this machine cannot read the answers."""
    with TestClient(make_app(make_serving(), hosts={"localhost", "::1"}), base_url="http://localhost:8000") as client:
        for host in ("localhost", "localhost:8000", "LOCALHOST", "[::1]:8000"):
            assert client.get("/model", headers={"Host": host}).status_code == 200
        for host in ("evil.example", "localhost.evil.example:8000", ""):
            assert reason(client.get("/model", headers={"Host": host})) == (421, "unknown_host")


def test_a_folder_is_loaded_again_on_request(guarded, model_folder, seal):
    guarded.headers["Authorization"] = f"Bearer {TOKEN}"
    before = guarded.get("/model").json()
    assert guarded.post("/reload").json()["result"] == "unchanged"

    labels = model_folder / "labels.jsonl"
    labels.write_text(labels.read_text().replace("red cat", "<b>crimson</b> cat"))
    seal(model_folder)
    assert guarded.post("/reload").json()["result"] == "exchanged"
    after = guarded.get("/model").json()
    assert after["version"] != before["version"]
    assert guarded.get("/labels", params={"search": "crimson"}).json()["labels"][0]["id"] == 0

    labels.write_text("damaged")
    response = guarded.post("/reload")
    assert reason(response) == (409, "model_not_loaded")
    assert "the model of before goes on serving" in response.json()["detail"]
    assert guarded.get("/model").json()["version"] == after["version"]
    assert "labels.jsonl, line 1" in guarded.get("/model").json()["last_reload"]["reason"]
    assert guarded.get("/health").json()["last_reload"] == "failed"
    assert str(model_folder) not in guarded.get("/health").text
    assert guarded.post("/predict", json={"texts": ["a"]}).json()["version"] == after["version"]
    assert [
        metric(guarded, "prime_xmc_reloads_total", result=result) for result in ("exchanged", "unchanged", "failed")
    ] == [1, 1, 1]
    shown = {"version": after["version"], "labels": 48, "package": "0.1.0", "scorer": "theta"}
    assert metric(guarded, "prime_xmc_model_info", **shown) == 1


def test_without_a_token_nobody_may_load_the_folder_again(client):
    assert reason(client.post("/reload")) == (403, "no_token")


def test_metrics_count_what_happens(client):
    client.post("/predict", json={"texts": ["a", "b"]})
    client.post("/predict", json={"texts": ["c"]})
    client.post("/predict", json={"texts": []})
    assert metric(client, "prime_xmc_texts_total") == 3
    assert metric(client, "prime_xmc_batch_texts_sum") == 3
    assert metric(client, "prime_xmc_batch_texts_count") == 2
    assert metric(client, "prime_xmc_requests_total", method="POST", path="/predict", status="200") == 2
    assert metric(client, "prime_xmc_request_seconds_count", path="/predict") == 3
    assert metric(client, "prime_xmc_errors_total", reason="invalid") == 1
    assert metric(client, "prime_xmc_waiting_texts") == 0
    assert metric(client, "process_resident_memory_bytes") > 1e6


def test_a_full_queue_and_what_health_says_of_it(make_serving, monkeypatch):
    held, entered = threading.Event(), threading.Event()
    predict = Predictor.answer

    def slow(self, texts, request):
        entered.set()
        assert held.wait(20)
        return predict(self, texts, request)

    serving = make_serving(max_batch=8)
    monkeypatch.setattr(Predictor, "answer", slow)
    with TestClient(make_app(serving)) as client:
        statuses = []
        asked = [
            threading.Thread(
                target=lambda: statuses.append(client.post("/predict", json={"texts": ["a"] * 8}).status_code)
            )
            for _ in range(3)
        ]
        asked[0].start()
        assert entered.wait(10)
        assert client.get("/health").json()["ready"]
        for thread in asked[1:]:
            thread.start()
        for _ in range(500):
            if client.get("/health").json()["waiting"] == 16:
                break
        response = client.post("/predict", json={"texts": ["a"]})
        assert reason(response) == (429, "queue_full")
        assert response.headers["Retry-After"] == "1"
        for path, status in (("/health", 503), ("/health/ready", 503), ("/health/live", 200)):
            assert client.get(path).status_code == status
        monkeypatch.setattr("prime_xmc.serving.application._STUCK", 0.0)
        assert client.get("/health/live").status_code == 503
        held.set()
        for thread in asked:
            thread.join()
        assert statuses == [200] * 3
        monkeypatch.undo()
        assert client.get("/health").status_code == 200


def test_a_defect_is_logged_and_the_client_sees_none_of_it(make_serving, monkeypatch, caplog):
    serving = make_serving()

    def broken(self, texts, request):
        raise RuntimeError("a secret of the machine")

    monkeypatch.setattr(Predictor, "answer", broken)
    with TestClient(make_app(serving)) as client:
        response = client.post("/predict", json={"texts": ["a"]})
        assert reason(response) == (500, "defect")
        assert "secret" not in response.text
        assert "a secret of the machine" in caplog.text
        assert metric(client, "prime_xmc_errors_total", reason="defect") == 1
        monkeypatch.undo()
        assert client.post("/predict", json={"texts": ["a"]}).status_code == 200


def test_a_client_that_has_gone_leaves_the_queue(make_serving, monkeypatch):
    """Through ASGI itself: the test client always waits."""
    held, seen = threading.Event(), []
    predict = Predictor.answer

    def slow(self, texts, request):
        seen.append(texts)
        assert held.wait(20)
        return predict(self, texts, request)

    serving = make_serving(max_wait=0.0)
    monkeypatch.setattr(Predictor, "answer", slow)
    app = make_app(serving)

    async def request(text, leaves):
        body = json.dumps({"texts": [text]}).encode()
        sent = []
        messages = [{"type": "http.request", "body": body}]

        async def receive():
            if messages:
                return messages.pop()
            await leaves.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers, "query_string": b""}
        await app(scope | {"asgi": {"version": "3.0"}, "scheme": "http"}, receive, send)
        return sent[0]["status"]

    async def go():
        never, now = asyncio.Event(), asyncio.Event()
        async with serving.running():
            first = asyncio.create_task(request("first", never))
            while not seen:
                await asyncio.sleep(0.01)
            gone = asyncio.create_task(request("gone", now))
            stays = asyncio.create_task(request("stays", never))
            while serving.batcher.waiting < 2:
                await asyncio.sleep(0.01)
            now.set()
            assert await gone == 499
            assert serving.batcher.waiting == 1
            held.set()
            assert [await first, await stays] == [200, 200]

    asyncio.run(go())
    assert seen == [["first"], ["stays"]]
    assert b"prime_xmc_gone_clients_total 1.0" in serving.telemetry.page()


def test_openapi_describes_requests_and_answers(client):
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        *("/predict", "/labels", "/model", "/health", "/health/live", "/health/ready", "/metrics", "/reload")
    }
    texts = schema["components"]["schemas"]["PredictRequest"]["properties"]["texts"]
    assert (texts["minItems"], texts["maxItems"], texts["items"]["maxLength"]) == (1, 8, 500)
    answers = schema["paths"]["/predict"]["post"]["responses"]
    assert set(answers) >= {"200", "401", "413", "422", "429"}
    assert answers["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/Predictions")
    answer = client.post("/predict", json={"texts": ["a"]}).json()
    described = schema["components"]["schemas"]
    assert set(answer) == set(described["Predictions"]["properties"])
    (prediction,) = answer["predictions"]
    assert set(prediction) == set(described["QueryAnswered"]["properties"])
    assert set(prediction["labels"][0]) == set(described["LabelScored"]["properties"]) - {"probability", "why"}
    (explained,) = client.post("/predict", json={"texts": ["a"], "explain": True}).json()["predictions"]
    assert set(explained["labels"][0]["why"]) == set(described["Why"]["properties"])
    for path, name in (("/model", "ModelDescription"), ("/health", "Health"), ("/labels", "LabelsFound")):
        assert set(client.get(path).json()) == set(described[name]["properties"])

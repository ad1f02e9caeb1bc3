"""What goes to the hub and comes from it, against a hub that only records."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import LocalEntryNotFoundError

import prime_xmc
from prime_xmc.export import hub


class FakeHub:
    """Records the calls that `HfApi` would send."""

    def __init__(self, there=()):
        self.there, self.calls = there, []

    def __call__(self, token=None):
        self.calls.append(("token", token))
        return self

    def create_repo(self, repo_id, **options):
        self.calls.append(("create_repo", repo_id, options))

    def list_repo_files(self, repo_id):
        return list(self.there)

    def create_commit(self, repo_id, operations, commit_message):
        self.calls.append(("create_commit", repo_id, operations))
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


@pytest.fixture
def fake(monkeypatch):
    api = FakeHub(there=[".gitattributes", "README.md", "ensemble.json", "neighbours/neighbours.json", "notes.txt"])
    monkeypatch.setattr(hub, "HfApi", api)
    return api


def operations(fake):
    (commit,) = [call for call in fake.calls if call[0] == "create_commit"]
    added = {each.path_in_repo: each for each in commit[2] if isinstance(each, CommitOperationAdd)}
    deleted = {each.path_in_repo for each in commit[2] if isinstance(each, CommitOperationDelete)}
    return added, deleted


def test_the_whole_folder_and_nothing_else_goes_in_one_commit(copy, fake):
    names = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    (copy / "secret.py").write_text("print()")
    (copy / ".cache").mkdir()
    (copy / ".cache" / "x.json").write_text("{}")
    address = prime_xmc.load(copy).push_to_hub("ada/packages", token="t")
    assert address == "https://hub/ada/packages/commit/1"
    assert fake.calls[:2] == [("token", "t"), ("create_repo", "ada/packages", {"private": True, "exist_ok": True})]
    added, deleted = operations(fake)
    assert added.keys() == names
    assert deleted == {"ensemble.json", "neighbours/neighbours.json"}, "of an earlier model; others' files stay"


def test_a_folder_whose_own_name_is_hidden(copy, fake):
    """Otherwise nothing at its top would be sent, and all that is there would be removed from the hub."""
    hub.upload(copy.rename(copy.parent / ".model"), "ada/packages")
    assert {"prime_config.json", "prototypes.safetensors"} <= operations(fake)[0].keys()


def test_card_says_where_and_asserts_no_licence(copy, fake):
    hub.upload(copy, "ada/packages")
    card = operations(fake)[0]["README.md"].path_or_fileobj.decode()
    assert 'prime_xmc.load("ada/packages")' in card
    assert "license:" not in card
    assert "No licence is declared" in card
    assert str(copy.parent) not in card
    assert 'prime_xmc.load(".")' in (copy / "README.md").read_text(), "the folder itself stays as it was"


def test_a_licence_that_is_given_is_declared(copy, fake):
    hub.upload(copy, "ada/packages", license="mit", private=False)
    card = operations(fake)[0]["README.md"].path_or_fileobj.decode()
    assert "license: mit" in card.split("---")[1]
    assert ("create_repo", "ada/packages", {"private": False, "exist_ok": True}) in fake.calls


def test_labels_that_were_added_go_along(copy, fake):
    model = prime_xmc.load(copy)
    model.add_labels(["purple dragon"])
    model.push_to_hub("ada/packages")
    added, _ = operations(fake)
    assert "purple dragon" in Path(added["labels.jsonl"].path_or_fileobj).read_text(encoding="utf-8")
    assert "1 label added." in added["README.md"].path_or_fileobj.decode()


@pytest.mark.parametrize("name", ["packages", "a/b/c", "a b/c", ""])
def test_names_that_are_none(copy, fake, name):
    with pytest.raises(ValueError, match="expected a name on the hub, <owner>/<model>, got"):
        hub.upload(copy, name)
    assert fake.calls == []


def test_other_folders_are_not_uploaded(tmp_path, fake):
    with pytest.raises(FileNotFoundError, match="no exported model"):
        hub.upload(tmp_path, "ada/packages")
    assert fake.calls == []


def test_loading_downloads_data_files_alone(copy, monkeypatch, tmp_path):
    calls = []

    def snapshot_download(repo_id, **options):
        calls.append((repo_id, options))
        return str(copy)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    model = prime_xmc.load("ada/packages", revision="v2")
    patterns = ["*.json", "*.jsonl", "*.safetensors", "*.faiss", "README.md"]
    assert calls == [("ada/packages", {"revision": "v2", "allow_patterns": patterns})]
    assert model.predict(["cat"])
    with pytest.raises(ValueError, match="the model comes from the hub: give a folder to save it in"):
        model.save()
    model.add_labels(["a"])
    assert prime_xmc.load(model.save("second")).num_labels == 49
    assert prime_xmc.load(copy).num_labels == 48


def test_a_folder_here_comes_before_the_hub(copy, monkeypatch):
    monkeypatch.setattr(hub, "snapshot_download", None)
    monkeypatch.chdir(copy.parent.parent)
    assert prime_xmc.load(f"{copy.parent.name}/model").num_labels == 48


def test_what_is_neither_here_nor_there(monkeypatch, tmp_path):
    def snapshot_download(*_, **__):
        raise LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder\nmore")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    message = "models/second: there is no such folder in .*, and the hub does not give such a model .Cannot find an"
    with pytest.raises(FileNotFoundError, match=message):
        prime_xmc.load("models/second")

import numpy as np
import pytest

from prime_xmc.export.label_choice import as_texts, choose_labels

LABELS = [
    ("vim", "Vi IMproved"),
    ("tmux", "terminal multiplexer"),
    ("zsh", "shell"),
    ("ed", "editor"),
    ("vim", "again"),
]
NUMBERED = [("100", "a"), ("7", "b"), ("0", "c")]


def chosen(**lists):
    return np.flatnonzero(choose_labels(LABELS, **lists)).tolist()


def test_all_may():
    assert choose_labels(LABELS) is None


@pytest.mark.parametrize(
    ("lists", "ids"),
    [
        ({"allow": ["tmux", "zsh"]}, [1, 2]),
        ({"allow": ["vim"]}, [0, 4]),  # both that have the uid
        ({"exclude": ["vim", "2"]}, [1, 3]),
        ({"allow": ["0"]}, [0]),
        ({"allow": ["3", 1], "exclude": [1]}, [3]),
        ({"allow": 2}, [2]),
        ({"allow": "tmux"}, [1]),
        ({"exclude": []}, [0, 1, 2, 3, 4]),
    ],
)
def test_by_uid_and_by_id(lists, ids):
    assert chosen(**lists) == ids


def test_where_uids_are_numbers_a_number_in_a_text_is_a_uid_alone():
    """Otherwise the uid of a label that has been removed would silently name the label of that row."""
    assert choose_labels(NUMBERED, exclude=["0"]).tolist() == [True, True, False]
    assert choose_labels(NUMBERED, exclude=[1]).tolist() == [True, False, True]  # is no uid
    with pytest.raises(
        ValueError, match="exclude: 0 is the id of one label, in row 0, and the uid of another one, in row 2"
    ):
        choose_labels(NUMBERED, exclude=[0])
    assert choose_labels([("0", "a"), ("1", "b")], allow=[1]).tolist() == [False, True]
    for given in (["2"], "2"):
        with pytest.raises(
            ValueError, match=r"exclude: there is no label '2'; expected uids of labels\. The nearest is"
        ):
            choose_labels(NUMBERED, exclude=given)


def test_a_file(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufefftmux\r\n\n 2 \r\n".encode())
    assert chosen(allow=path) == chosen(allow=str(path)) == [1, 2]
    path.write_text("tmux\nemacs\n")
    with pytest.raises(ValueError, match=r"allow=.*labels.txt, line 2: there is no label 'emacs'; expected uids"):
        chosen(allow=path)
    path.write_bytes(b"\xff\n")
    with pytest.raises(ValueError, match=r"exclude=.*labels.txt, line 1: not UTF-8"):
        chosen(exclude=path)


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ({"allow": ["tmuxx"]}, r"allow: there is no label 'tmuxx'; .* The nearest is 'tmux'"),
        ({"exclude": ["Terminal Multiplexer "]}, r"exclude: there is no label .* The label with that text is 'tmux'"),
        ({"allow": [5]}, r"allow: there is no label 5; .*, from 0 to 4"),
        ({"allow": ["-1"]}, r"there is no label '-1'"),
        ({"allow": [-1]}, r"there is no label -1"),
        ({"allow": [True]}, r"True names no label"),
        ({"allow": "tmx"}, r"allow=tmx: there is no such file and no such label; .* The nearest is 'tmux'"),
        ({"allow": ["tmux"], "exclude": ["tmux"]}, "allow= and exclude= leave no label"),
        ({"allow": []}, "leave no label"),
    ],
)
def test_what_is_not_there(lists, said):
    with pytest.raises(ValueError, match=said):
        chosen(**lists)


def test_a_path_that_leads_nowhere(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"allow=.*nowhere\.txt: there is no such file"):
        chosen(allow=tmp_path / "nowhere.txt")


def test_settings_become_texts():
    assert as_texts(None) is None
    assert as_texts("labels.txt") == "labels.txt"
    assert as_texts(7) == ["7"]
    assert as_texts(["vim", 7]) == ["vim", "7"]

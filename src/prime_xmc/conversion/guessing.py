"""Which columns hold what, and how labels are separated, guessed from names and a sample of the rows."""

import ast
import io
import re
import tokenize
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from html.entities import html5
from typing import Any, NamedTuple

from prime_xmc.foreign import parse_json
from prime_xmc.tables.reader import as_strings

TEXT_NAMES = (
    *("text", "query", "title", "question", "sentence", "utterance", "content", "document", "description"),
    *("abstract", "body", "input", "prompt", "review", "headline", "subject", "summary", "name"),
)
LABELS_NAMES = (
    *("labels", "label", "label_ids", "label_id", "label_names", "label_name", "tags", "tag", "categories"),
    *("category", "classes", "class", "topics", "topic", "targets", "target", "target_ind", "codes", "code"),
    *("keywords", "genres", "genre", "intent", "y"),
)
_VAGUE = ("targets", "target", "codes", "code", "keywords", "y")  # a column of lists is likelier to hold the labels
ID_NAMES = ("id", "uid", "_id", "qid", "query_id", "text_id", "doc_id", "document_id", "guid", "key", "index")
LABEL_ID_NAMES = ("id", "uid", "_id", "label_id", "lid", "code", "key", "index")
LABEL_TEXT_NAMES = ("text", "title", "name", "label_name", "label_text", "label", "description")

LIST = "list"  # the separator of cells that are lists already
JSON = "json"  # and of those that hold a list as JSON or Python writes it
TAGS = "tags"  # and of those that hold each label in brackets, <python><pandas>, as Stack Exchange writes them
CLEAR_SEPARATORS = (";", "|", "\t", "\n")
_SEPARATORS = (*CLEAR_SEPARATORS, ",", " ")
_MISSING = ("nan", "NaN", "None", "null", "<NA>", "()", "set()")  # what tools write among lists where there is none
_NOTHING = {"", "None", "[]"}  # cells without a label
# Lists as JSON, Python and NumPy write them, and Python's tuples and sets of strings.
_LISTS = re.compile(r"""\s*(\[.*\]|\(\s*['"].*\)|\{\s*['"](?!.*['"]\s*:).*\})\s*""", re.DOTALL)
_TAGS = re.compile(r"(?:<[^<>]+>\s*)+")
ROW = "row number"  # what stands for the column by which labels without a name are referred to


class Column(NamedTuple):
    """A column, and why it is taken.

    Attributes:
        column: Its name; None: there is none.
        reason: "given", or how it was found, for people.
    """

    column: str | None
    reason: str


def choose_column(
    columns: Sequence[str], names: Sequence[str], given: str | None, key: str, taken: Collection[str] = ()
) -> Column:
    """Return the column that is given or, without one, the first that has one of some usual names.

    Args:
        columns: Columns of the table.
        names: Usual names, the most telling first; case, blanks and hyphens do not count.
        given: The user's choice.
        key: Key by which users choose, for the message.
        taken: Columns that hold something else.

    Raises:
        ValueError: If the given column is not there.
    """
    if given is not None:
        if given not in columns:
            raise ValueError(f"{key}={given}: there is no such column, only {', '.join(columns) or 'none at all'}")
        return Column(given, "given")
    plain = {_plain(column): column for column in reversed(columns) if column not in taken}
    found = next((plain[name] for name in names if name in plain), None)
    return Column(found, f"by its name; {key}= names another")


def choose_query_columns(
    columns: Sequence[str],
    sample: Sequence[Mapping[str, str | list[str]]],
    *,
    texts: Sequence[str],
    labels: str | None,
    uid: str | None,
    needs_labels: bool,
) -> dict[str, Column]:
    """Return the columns `text`, `labels` and `uid` of a table of queries, the first one where these are several.

    A column that nothing else is left for, or that alone has lists or the longest texts, is taken whatever its name,
    where no name tells. A column of lists with a usual name goes before others with one.

    Args:
        columns: Columns of the table.
        sample: Its first rows.
        texts: The user's choice of the columns of the text; none: guessed.
        labels: The user's choice of the first column of labels.
        uid: The user's choice of the column of identifiers.
        needs_labels: Whether there has to be a column of labels; otherwise none is looked for.

    Raises:
        ValueError: If a given column is not there, or none can be found.
    """
    text = texts[0] if texts else None
    given = {*texts, *([] if labels is None else [labels])}
    chosen_uid = choose_column(columns, ID_NAMES, uid, "id_column", given)
    if chosen_uid.column is None and (named := _identifying(columns, sample, given)) is not None:
        chosen_uid = Column(named, "by its name, and no two rows have the same; id_column= names another")
    known = {name for name in (*texts, chosen_uid.column) if name is not None}
    chosen_labels = Column(None, "")
    if needs_labels:
        lists = [
            name for name in columns if name not in known and any(isinstance(row.get(name), list) for row in sample)
        ]
        chosen_labels = choose_column(columns, LABELS_NAMES, labels, "labels_column", known)
        by_name = None if chosen_labels.column is None else _plain(chosen_labels.column)
        only = [name for name in lists if _plain(name) in LABELS_NAMES]
        if not only and (by_name is None or by_name in _VAGUE):
            only = [name for name in lists if _plain(name) not in TEXT_NAMES]
        if labels is None and len(only) == 1:
            chosen_labels = Column(only[0], "the only one with lists; labels_column= names another")
        if chosen_labels.column is None:  # label_1, label_2, ...
            numbered = {_parted(name)[0]: name for name in reversed(columns) if name not in known and _parted(name)[1]}
            first = next((numbered[name] for name in LABELS_NAMES if name in numbered), None)
            if first is not None and len(numbered_alike(columns, sample, first, known)) > 1:
                chosen_labels = Column(first, chosen_labels.reason)
        known |= {chosen_labels.column} if chosen_labels.column is not None else set()
    chosen_text = choose_column(columns, TEXT_NAMES, text, "text_column", {each for each in known if each != text})
    rest = [name for name in columns if name not in known and name != chosen_text.column]
    if chosen_text.column is None and rest:
        longest = max(rest, key=lambda name: sum(len(str(row.get(name, ""))) for row in sample))
        reason = "the only one left" if len(rest) == 1 else "the one with the longest texts"
        chosen_text = Column(longest, f"{reason}; text_column= names another")
        rest.remove(longest)
    if needs_labels and chosen_labels.column is None and len(rest) == 1:
        chosen_labels = Column(rest[0], "the only one left; labels_column= names another")
    has = f"the columns are {', '.join(columns)}" if columns else "there are no columns"
    if chosen_text.column is None:
        raise ValueError(f"no column of texts: {has}; name it by text_column=")
    if needs_labels and chosen_labels.column is None:
        raise ValueError(f"no column of labels: {has}; name it by labels_column=")
    return {"text": chosen_text, "labels": chosen_labels, "uid": chosen_uid}


def numbered_alike(
    columns: Sequence[str], sample: Sequence[Mapping[str, str | list[str]]], column: str, taken: Collection[str]
) -> tuple[str, ...]:
    """Return a column of labels and those that go on with it, such as `label`, `label2` and `label3`.

    Their numbers follow one another from 0, 1 or 2, so that `label_2019` is none of them, and each has some value of
    those before it, which probabilities and codes beside a label have not.

    Args:
        columns: Columns of the table.
        sample: Its first rows.
        column: The column of labels that was found.
        taken: Columns that hold something else.
    """
    stem, start = _parted(column)
    parts = {name: _parted(name) for name in columns if name not in taken}
    numbered = {number: name for name, (its_stem, number) in parts.items() if its_stem == stem and number}
    found, values = [column], {str(row.get(column)) for row in sample} - _NOTHING
    number = int(start) + 1 if start else 1 if "1" in numbered else 2
    while (name := numbered.get(str(number))) is not None:
        own = {str(row.get(name)) for row in sample} - _NOTHING
        if own and values.isdisjoint(own):
            break
        found.append(name)
        values |= own
        number += 1
    return tuple(found)


def _parted(column: str) -> tuple[str, str]:
    """Return the name of a column without a number at its end, and the number, empty where there is none."""
    name = _plain(column)
    found = re.fullmatch(r"(.*[^\d_])_?(\d+)", name)
    return (found[1], found[2]) if found else (name, "")


def _identifying(
    columns: Sequence[str], sample: Sequence[Mapping[str, str | list[str]]], taken: Collection[str]
) -> str | None:
    """Return the first column such as `ticket_id` that has another value in each row."""
    for column in columns:
        if column not in taken and _plain(column).endswith("_id") and _plain(column) not in LABELS_NAMES:
            values = [row.get(column) for row in sample]
            names = {value for value in values if isinstance(value, str) and value}
            if values and len(names) == len(values):
                return column
    return None


def split_cell(cell: str | list[str], separator: str) -> list[str]:
    """Return the labels of a cell without surrounding blanks, and without those that are empty.

    Args:
        cell: A string or a list of strings.
        separator: What separates them in a string; "": the cell is one label, `LIST`, `JSON`, `TAGS`.

    Raises:
        ValueError: If it should be JSON or tags and is not.
    """
    if isinstance(cell, list):
        parts: Iterable[str] = cell
    elif separator == JSON:
        parts = _parse_list(cell)
    elif separator == TAGS:
        if cell.strip() and not _TAGS.fullmatch(cell.strip()):
            raise ValueError(f"{cell[:60]!r} is not labels that are each in < and >; give label_separator=")
        parts = re.findall(r"<([^<>]+)>", cell)
    elif separator in ("", LIST):
        parts = [cell]
    elif separator == ";":
        parts = (part.replace(_END, ";") for part in _without_ends(cell).split(";"))
    else:
        parts = cell.split(separator)
    return [stripped for part in parts if (stripped := part.strip())]


_ENTITY = re.compile(r"&(#\w+|\w+);")  # such as &amp; or &#38;
_END = "\0"  # in the place of the semicolon of an entity


def separators_within(cells: Sequence[str | list[str]], separator: str) -> frozenset[str]:
    """Return which clear separators are within names of labels: all that cells have, but for what separates labels.

    Those of entities and within lists are not counted. One that divides cells without the separator, half of them at
    least, into nothing but labels of others is not within a name: some cells were written otherwise. Cells that are
    a label among those of others are none of these.

    Args:
        cells: Cells of labels.
        separator: What separates the labels of most cells, see `split_cell`.

    Example:
        >>> sorted(separators_within(["soup;AT&T | wireless", "soup|vegan", "vegan;pie"], ";"))
        []
        >>> sorted(separators_within(["soup;AT&T | wireless", "vegan;pie"], ";"))
        ['|']
    """
    texts = [cell for cell in cells if isinstance(cell, str)]
    within = {each for each in CLEAR_SEPARATORS if any(each in _without_ends(text) for text in texts)} - {separator}
    if separator in (JSON, TAGS):
        return frozenset(within)
    split = [split_cell(cell, separator) for cell in cells]
    labels = {label for own in split for label in own}
    among_others = {label for own in split if len(own) > 1 for label in own}
    whole = [cell for cell, own in zip(cells, split, strict=True) if isinstance(cell, str) and own == [cell.strip()]]
    for each in sorted(within):
        divided = [text for text in whole if each in _without_ends(text) and text.strip() not in among_others]
        parts = [split_cell(text, each) for text in divided]
        if parts and 2 * sum(labels.issuperset(of_cell) for of_cell in parts) >= len(parts):
            within.remove(each)
    return frozenset(within)


def _without_ends(cell: str) -> str:
    """Return a cell in which no semicolon ends an entity, which would look like a separator."""

    def without(entity: re.Match[str]) -> str:
        is_one = entity[1].startswith("#") or f"{entity[1]};" in html5
        return f"&{entity[1]}{_END}" if is_one else entity[0]

    return _ENTITY.sub(without, cell) if "&" in cell else cell


def guess_separator(cells: Sequence[str | list[str]]) -> str:
    """Return what separates the labels of cells, where nothing but the cells says so.

    Semicolons, bars, tabs and line breaks separate wherever they occur, the most frequent of them, unless a few cells
    have one and other cells none of what it separates, and commas separate. Blanks do where there are numbers alone.
    Commas are in many names: they separate numbers, and names if labels of different cells are then more often the
    same.

    Example:
        >>> guess_separator(["soup;vegan", "dessert", "soup;quick, easy"])
        ';'
        >>> guess_separator(["soup, vegan", "vegan, pie", "soup"]), guess_separator(["Paris, France", "Rome, Italy"])
        (',', '')
        >>> guess_separator(["<python><pandas>", "<c++>"])
        'tags'
    """
    if any(isinstance(cell, list) for cell in cells):
        return LIST
    filled = [_without_ends(cell.strip()) for cell in cells if isinstance(cell, str) and cell.strip()]
    lists = [cell for cell in filled if cell not in _MISSING]
    if lists and all(_is_list(cell) for cell in lists):
        return JSON
    if all(map(_TAGS.fullmatch, filled)) and any(cell.count("<") > 1 for cell in filled):
        return TAGS
    by_comma = "," if _commas_separate(filled) else ""
    frequent = max(CLEAR_SEPARATORS, key=lambda separator: sum(separator in cell for cell in filled))
    if any(frequent in cell for cell in filled) and not (by_comma and _is_stray(frequent, filled)):
        return frequent
    if any(" " in cell for cell in filled) and all(re.fullmatch(r"[\d ]+", cell) for cell in filled):
        return " "
    return by_comma


def _is_list(cell: str) -> bool:
    """Return whether a cell is a list, or a tuple or set of Python; what only looks like one of these is not."""
    if not _LISTS.fullmatch(cell):
        return False
    if cell.lstrip().startswith("["):
        return True
    with suppress(ValueError):
        return bool(_parse_list(cell))
    return False


def _commas_separate(cells: Sequence[str]) -> bool:
    if not any("," in cell for cell in cells):
        return False
    parts = {part for cell in cells for part in split_cell(cell, ",")}
    return len(parts) <= len(set(cells)) or all(part.isdigit() for part in parts)


def _is_stray(separator: str, cells: Sequence[str]) -> bool:
    """Return whether a separator is a slip: in few cells, of whose parts the other cells have less than a half."""
    having = [cell for cell in cells if separator in cell]
    others = {cell for cell in cells if separator not in cell}
    parts = [part for cell in having for part in split_cell(cell, separator)]
    return 10 * len(having) <= len(cells) and 2 * sum(part in others for part in parts) < len(parts)


def hidden_separator(cell: str, known: Collection[str] = ()) -> str:
    """Return what divides a cell into several labels beyond doubt, where others are divided otherwise; "": nothing.

    Args:
        cell: The cell.
        known: Separators that do not count, since they are within labels elsewhere.
    """
    if _is_list(cell):
        with suppress(ValueError):
            return JSON if len(_parse_list(cell)) > 1 else ""
    cell = _without_ends(cell.strip())
    if _TAGS.fullmatch(cell) and cell.count("<") > 1:
        return TAGS
    found = next((separator for separator in CLEAR_SEPARATORS if separator in cell and separator not in known), "")
    return found or (" " if re.fullmatch(r"\d+( \d+)+", cell) else "")


def fields_of_objects(cells: Sequence[str | list[str]]) -> list[str]:
    """Return the fields of labels that are objects in JSON, {"id": 3, "name": "soup"}; none where one is no object.

    Cells may be lists of them, such lists as JSON or Python writes them, or one object each.
    """
    fields: dict[str, None] = {}
    for cell in cells:
        try:
            for label in split_cell(cell, JSON if _LISTS.match(str(cell)) else ""):
                value = parse_json(label) if label.startswith("{") else None
                if not isinstance(value, dict):
                    return []
                fields |= dict.fromkeys(map(str, value))
        except ValueError:
            return []
    return list(fields)


BITS = frozenset({"0", "1", "0.0", "1.0", "false", "true", "False", "True"})


def are_indicators(cells: Sequence[str | list[str]], separator: str) -> bool:
    """Return whether cells are rows of zeros and ones, a place for each label of the data, in the place of labels.

    Lists of labels name each once, so that zeros or ones which repeat are not labels.
    """
    rows = [split_cell(cell, separator) for cell in cells if cell]
    values = {value for row in rows for value in row}
    is_even = len({len(row) for row in rows}) == 1 and values <= BITS
    return is_even and any(len(set(row)) < len(row) for row in rows)


IS_NUMBER = re.compile(r"\d+(\.0+)?")  # of what is an identifier, possibly turned into a float by a tool


class Reference(NamedTuple):
    """How the queries refer to labels.

    Attributes:
        column: Column of the table of labels, or `ROW`.
        separator: What separates references in a cell.
        matched: Number of different references of the sample that the table has.
        total: Number of different references of the sample.
    """

    column: str
    separator: str
    matched: int
    total: int


def match_references(
    cells: Sequence[str | list[str]],
    rows: Iterable[Mapping[str, str | list[str]]],
    columns: Sequence[str],
    separator: str | None = None,
    uid: str | None = None,
) -> Reference:
    """Return by which column of the labels, and separated how, most cells of the queries name labels alone.

    Where identifiers of labels are numbers, numbers in the cells are identifiers too, and not numbers of rows, however
    many these would be: 3 and 003 or 3.0 are told apart later, with an error rather than the label of another row.

    Args:
        cells: Cells of the queries' column of labels, some of them.
        rows: All rows of the labels.
        columns: Columns of the labels, the most likely first.
        separator: The user's choice; None: all that occur are tried.
        uid: Column of identifiers; None: not known.
    """
    if separator is not None:
        separators: tuple[str, ...] = (separator,)
    elif (guess := guess_separator(cells)) in (LIST, JSON):
        separators = (guess,)
    elif guess == TAGS:
        separators = ("", TAGS)
    else:
        separators = ("", *(each for each in _SEPARATORS if any(each in str(cell) for cell in cells)))
    different = list({str(cell): cell for cell in cells}.values())
    parts_of = {each: [split_cell(cell, each) for cell in different] for each in separators}
    wanted = {each: {part for parts in split for part in parts} for each, split in parts_of.items()}
    found: dict[tuple[str, str], set[str]] = {
        (column, each): set() for each in separators for column in (*columns, ROW)
    }
    has_numbers, names_numbers = False, uid is not None
    for number, row in enumerate(rows):
        if names_numbers and (name := str(row.get(str(uid), "")).strip()):
            has_numbers, names_numbers = True, IS_NUMBER.fullmatch(name) is not None
        for each, parts in wanted.items():
            for column in columns:
                value = row.get(column, "")
                if isinstance(value, str) and (value := value.strip()) in parts:
                    found[column, each].add(value)
            if str(number) in parts:
                found[ROW, each].add(str(number))

    if has_numbers and names_numbers:
        found = {key: names for key, names in found.items() if key[0] != ROW}

    def fit(key: tuple[str, str]) -> tuple[int, int, bool, bool, float, int, int]:
        column, each = key
        total = len(wanted[each])
        share = len(found[key]) / total if total else 0.0
        # in cells, since a new label may stand in any
        all_known = sum(bool(parts) and found[key].issuperset(parts) for parts in parts_of[each])
        some_known = sum(not found[key].isdisjoint(parts) for parts in parts_of[each])
        order = -list((*columns, ROW)).index(column)
        return all_known, some_known, not each and share == 1, each in CLEAR_SEPARATORS, share, total, order

    column, chosen = max(found, key=fit)
    return Reference(column, chosen, len(found[column, chosen]), len(wanted[chosen]))


def describe_separator(separator: str) -> str:
    """Return how the labels of a cell are separated, for people."""
    names = {"": "one label a cell", LIST: "lists", JSON: "lists in JSON", TAGS: "each in < and >"}
    names |= {"\t": "separated by tabs", "\n": "separated by line breaks", " ": "separated by blanks"}
    return names.get(separator, f"separated by {separator!r}")


def _plain(column: str) -> str:
    return re.sub(r"[\s-]+", "_", column.strip().casefold())


def _parse_list(cell: str) -> list[str]:
    if not cell.strip() or cell.strip() in _MISSING:
        return []
    try:
        value = parse_json(cell)
    except ValueError:
        try:
            value = _literal(cell.strip())  # what pandas writes of a list; literals only, nothing is run
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError) as error:
            raise ValueError(f"{cell[:60]!r} is not a list; give label_separator=") from error
    labels = as_strings(sorted(map(str, value)) if isinstance(value, set) else value)
    if not isinstance(labels, list):
        raise ValueError(f"{cell[:60]!r} is not a list; give label_separator=")
    return labels


_ADJACENT = re.compile(r"""['"]\s*['"]""")  # strings of which Python would make one


def _literal(cell: str) -> Any:
    if not _ADJACENT.search(cell):
        with suppress(ValueError, TypeError, SyntaxError):
            return ast.literal_eval(cell)
    return ast.literal_eval(_with_commas(cell))


def _with_commas(cell: str) -> str:
    """Return a list as Python writes it from one as NumPy does, ['a' 'b'], of which Python would make ['ab'].

    Raises:
        ValueError: If it is no list of either.
    """
    values = (tokenize.STRING, tokenize.NUMBER, tokenize.NAME)
    parts, before = [], None
    for token in tokenize.generate_tokens(io.StringIO(cell).readline):
        if token.type == tokenize.ERRORTOKEN and token.string.strip():
            raise ValueError(f"{token.string!r} is out of place")
        if token.type in (tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT, tokenize.ERRORTOKEN):
            continue
        if before is not None and before.type in values and token.type in values:
            is_apart = before.end != token.start or before.type == token.type == tokenize.STRING
            parts.append("," if is_apart else "")  # 02139 is 0 and 2139 to Python, and no number in the end
        elif before is not None and before.end != token.start:
            parts.append(" ")
        parts.append("None" if token.type == tokenize.NAME and token.string == "nan" else token.string)
        before = token
    return "".join(parts)

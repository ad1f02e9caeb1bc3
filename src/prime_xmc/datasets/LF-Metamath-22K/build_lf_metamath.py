"""Builds LF-Metamath: which axioms, definitions and theorems does the proof of a theorem refer to?

    python build_lf_metamath.py set.mm OUT

reads the database of the Metamath Proof Explorer and writes the Extreme Classification Repository's raw files to the
folder OUT: `{trn,tst,lbl}.json.gz` and `filter_labels_{train,test}.txt`. It needs an installation of prime_xmc.
"""

import html
import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from prime_xmc.datasets.building import write_raw_files

COMMONEST_DROPPED = 30  # labels that most proofs refer to, such as the syllogism, say little of a theorem

_COMMENT = re.compile(r"\$\(\s.*?\s\$\)", re.DOTALL)
_TOKEN = re.compile(
    rf"(?P<comment>{_COMMENT.pattern})"
    r"|(?P<name>\S+)\s+\$[pa]\s+(?P<statement>.*?)\s+(?:\$=\s+(?P<proof>.*?)\s+)?\$\.",
    re.DOTALL,
)
_SUPERSEDED = re.compile(r"(OLD|ALT)[0-9NV]*D?$")  # of the name of an old or alternative version
_REMARK = re.compile(  # on who made a proof and when, in parentheses
    r"\(\s*(?:(?:re)?contributed|revis(?:ed|ion)|pro(?:of|ve)\s+(?:shortened|modification|revised)|shortened"
    r"|new\s+usage|unnecessary\s+distinct)\b[^()]*(?:\([^()]*\)[^()]*)*\)|\([^()]*\d-[A-Z][a-z]{2}-\d{2,4}[^()]*\)",
    re.IGNORECASE,
)
_END_OF_SENTENCE = re.compile(r"(?<=[.!?)])(?<!\b[A-Z]\.)\s+(?=[A-Z(\"])")
_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9]*(?:\s[^<>]*)?/?>")
_REFERENCE = re.compile(r"~\s+\S+|https?:\S+")
_STUMP = re.compile(r"\(\s*\)|(?<=\()\s+|\s+(?=[.,;:!?)])")
_CONTRIBUTOR = r"(?:^|(?<=\s\s))"  # where an entry of the list of contributors begins: initials, then a name


class Statement(NamedTuple):
    """An assertion of the database.

    Attributes:
        title: Its comment, cleaned.
        content: Its symbols, separated by blanks, without the leading `|-`.
        references: Names of the statements that its proof lists; empty for an axiom or a definition.
    """

    title: str
    content: str
    references: tuple[str, ...]


def read_statements(database: str) -> dict[str, Statement]:
    """Return the assertions of a database by their names.

    Left out are syntax, statements without a comment of their own or with nothing left of it, and old or alternative
    versions.
    """
    credit = credits_pattern(database)
    statements = {}
    comment, end = "", 0
    for match in _TOKEN.finditer(database):
        if match["comment"]:
            comment, end = match["comment"][2:-2], match.end()
            continue
        own = "" if database[end : match.start()].strip() else comment
        typecode, *symbols = _COMMENT.sub(" ", match["statement"]).split()
        if typecode != "|-" or not own or _SUPERSEDED.search(match["name"]):
            continue
        proof = match["proof"]
        # a compressed proof: ( references ) letters
        references = () if proof is None else tuple(proof[1 : proof.index(")")].split())
        if title := clean(own, credit):
            statements[match["name"]] = Statement(title, " ".join(symbols), references)
    return statements


def related_statements(statements: dict[str, Statement]) -> dict[str, set[str]]:
    """Return the statements that the proof of each refers to, less the `COMMONEST_DROPPED` of all."""
    related = {
        name: {other for other in statement.references if other in statements and other != name}
        for name, statement in statements.items()
    }
    count = Counter(other for others in related.values() for other in others)
    commonest = set(sorted(count, key=lambda name: (-count[name], name))[:COMMONEST_DROPPED])
    return {name: others - commonest for name, others in related.items()}


def credits_pattern(database: str) -> re.Pattern[str]:
    """Return what tells that a sentence is on who made a proof or when; the database itself lists its contributors."""
    start, stop = database.index("Contributor list:"), database.index("HTML code for accented names:")
    listed = database[start:stop].split("\n", 1)[1]
    people = re.findall(rf"{_CONTRIBUTOR}[A-Z]{{2,3}} +(\S+(?: \S+)*)", listed, re.MULTILINE)
    # "Line 12, p. 120" cites a book
    names = {person.split()[-1] for person in people if len(person) > 3} - {"Line"} | {"Frederic Line", "Mario"}
    first_names = {person.split()[0] for person in people if " " in person}
    alone = "|".join([*map(re.escape, sorted(names)), *(f"{name}'s" for name in sorted(first_names))])
    initials = "|".join(sorted(set(re.findall(rf"{_CONTRIBUTOR}([A-Z]{{2,3}}) +\S", listed, re.MULTILINE))))
    return re.compile(
        rf"(?<!\[)\b(?:{alone})\b|\d-[A-Z][a-z]{{2}}-\d{{2,4}}|\b(?:{initials})(?:'s\b|:)"
        rf"|(?:\bby |\bto |\bof |\band |\bauthors? |-|\()(?:{initials})\b"
    )


def clean(comment: str, credit: re.Pattern[str]) -> str:
    """Return a comment without remarks on its making, references to other statements, links and markup.

    Mathematics stays, without the backquotes around it.

    Args:
        comment: The comment, without its delimiters.
        credit: What `credits_pattern` returns.
    """
    text = html.unescape(" ".join(comment.split()))
    text = _TAG.sub(" ", _REMARK.sub(" ", text))
    text = " ".join(sentence for sentence in _END_OF_SENTENCE.split(text) if not credit.search(sentence))
    parts = text.split("`")  # every second one is mathematics
    for place in range(0, len(parts), 2):
        part = _REFERENCE.sub(" ", parts[place]).replace("~", " ").replace("_", " ").replace("[[", "[")
        parts[place] = _STUMP.sub("", f" {' '.join(part.split())} ")
    return " ".join("".join(parts).split())


def main(path: Path, out: Path) -> None:
    """Write the raw files of a database to a folder."""
    statements = read_statements(path.read_text(encoding="ascii"))
    texts = {name: {"title": statement.title, "content": statement.content} for name, statement in statements.items()}
    write_raw_files(out, texts, related_statements(statements), names_in_headers=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

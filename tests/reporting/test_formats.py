import re
from dataclasses import replace

import pytest

from prime_xmc.reporting.formats import to_csv, to_latex, to_markdown
from prime_xmc.reporting.tables import Cell, Table, make_tables


@pytest.fixture
def odd() -> Table:
    cell = Cell("12.34", "0.50", "better", best=True)
    rows = [(Cell("a_b|c & 50 % <i>"), cell), (Cell("–"), Cell("−1.00", mark="worse", interval="[−2, 0]"))]
    return Table("odd", "Odd", "p < 0.05 ▲", ("name", "P@1"), rows, [{"name": 'say "hi", x', "P@1": 0.1234}])


def test_markdown(odd):
    assert to_markdown(odd) == (
        "p &lt; 0.05 ▲\n\n"
        "| name | P@1 |\n| --- | ---: |\n"
        "| a\\_b\\|c &amp; 50 % &lt;i&gt; | **12.34 ± 0.50** ▲ |\n"
        "| – | −1.00 \\[−2, 0\\] ▼ |\n"
    )


def test_latex(odd):
    text = to_latex(odd)
    assert r"a\_b|c \& 50 \% \textless{}i\textgreater{} & \textbf{12.34} {\scriptsize $\pm$ 0.50}$^{+}$ \\" in text
    assert r"-- & $-$1.00 [$-$2, 0]$^{-}$ \\" in text
    assert r"\begin{tabular}{lr}" in text
    assert re.findall(r"\\(?:top|mid|bottom)rule", text) == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert r"\caption{p \textless{} 0.05 $^{+}$}" in text


def test_latex_beside_that_of_other_data_sets(odd):
    text = to_latex(odd, "LF-Toy")
    assert r"\caption{LF-Toy: p \textless{} 0.05 $^{+}$}" in text
    assert r"\label{tab:LF-Toy:odd}" in text


def test_a_bracket_is_no_option_of_the_line_before(odd):
    text = to_latex(replace(odd, rows=[(Cell("[SOLVED] x"), Cell("1"))]))
    assert "    {}[SOLVED] x & 1 \\\\\n" in text


def test_latex_of_a_study_is_ascii_and_its_groups_close(study):
    for table in make_tables(study):
        text = to_latex(table)
        assert not set(re.findall(r"[^\x00-\x7f]", text)) - set("“”"), table.name
        bare = re.sub(r"\\[{}]", "", text)
        assert bare.count("{") == bare.count("}")
        body = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
        assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {len(table.header) - 1}


def test_csv(odd):
    assert to_csv(odd) == 'name,P@1\n"say ""hi"", x",0.1234\n'

import csv
from collections import Counter
from importlib.resources import files

import pytest

from prime_xmc.reporting import published
from prime_xmc.reporting.published import compared_methods, find_result, read_published, warn_of_names

HEADER = "dataset,method,metric,value\n"


@pytest.fixture(scope="module")
def paper():
    return read_published("paper")


@pytest.fixture
def table(tmp_path):
    def write(text):
        path = tmp_path / "published.csv"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


class TestOfThePaper:
    def test_the_file_has_541_values(self):
        with (files("prime_xmc") / "reporting" / "published.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 541
        of_table = Counter(row["table"] for row in rows)
        assert of_table == {
            **{"2": 78, "3": 72, "4": 66, "5": 28, "6": 18, "7": 30, "8": 214, "9": 21, "11": 12},
            "App. H": 2,
        }
        assert all(float(row["value"]) >= 0 for row in rows)

    # Tables 2 and 3; PSP@1 is in Table 8
    @pytest.mark.parametrize(
        ("dataset", "method", "expected"),
        [
            (
                "LF-AmazonTitles-131K",
                "PRIME",
                {"P@1": 44.87, "P@3": 30.06, "P@5": 21.53, "PSP@1": 39.59, "PSP@5": 49.73},
            ),
            ("LF-AmazonTitles-1.3M", "DPR", {"P@1": 44.64, "P@3": 39.05, "P@5": 34.83, "PSP@5": 36.72}),
            ("LF-AmazonTitles-1.3M", "DEXML", {"P@1": 58.40, "P@5": 45.46, "PSP@5": 36.58}),
            (
                "LF-WikiSeeAlso-320K",
                "PRIME",
                {"P@1": 48.00, "P@3": 31.41, "P@5": 23.53, "PSP@1": 32.88, "PSP@5": 40.20},
            ),
            ("LF-WikiTitles-500K", "PRIME (W)", {"P@1": 46.75, "P@5": 18.44, "PSP@1": 25.13, "PSP@5": 24.31}),
        ],
    )
    def test_values(self, paper, dataset, method, expected):
        result = find_result(paper, dataset, method)
        assert result.values == pytest.approx({metric: value / 100 for metric, value in expected.items()})

    def test_sources_and_kinds(self, paper):
        result = find_result(paper, "LF-AmazonTitles-131K", "PRIME (θ)")
        assert result.method == "PRIME", "the encoder has two names"
        assert (result.kind, result.sources["P@1"], result.sources["PSP@1"]) == ("encoder", "Table 2", "Table 8")
        assert (
            find_result(paper, "LF-AmazonTitles-1.3M", "DEXA (W)").sources["PSP@1"].startswith("Table 4; Table 8 has")
        )

    def test_variants_of_the_ablations_are_no_methods_to_compare_with(self, paper):
        methods = {result.method for result in compared_methods(paper, "LF-AmazonTitles-1.3M")}
        assert {"PRIME", "PRIME (W)", "DEXML", "Renée (W)"} <= methods
        assert not {method for method in methods if method.startswith("PRIME-lite") or "batch" in method}
        assert find_result(paper, "LF-AmazonTitles-1.3M", "PRIME-lite").values["R@100"] == pytest.approx(0.6345)
        assert compared_methods(paper, "LF-Debian-18K") == []


class TestOfAFile:
    def test_columns_that_are_needed_suffice(self, table):
        (result,) = read_published(table(HEADER + "toy,Mine,P@1,50\ntoy,Mine,P@1,50.0\ntoy,Mine,hours,900\n"))
        assert (result.dataset, result.method, result.kind, result.values) == ("toy", "Mine", "", {"P@1": 0.5})
        assert result.sources == {"P@1": ""}
        assert compared_methods([result], "toy") == [result]

    def test_tables_of_the_same_number_as_the_papers_ablations_count(self, table):
        (result,) = read_published(table("table,note,dataset,method,metric,value\n6,so,toy,Mine,P@1,50\n"))
        assert not result.is_variant
        assert result.sources == {"P@1": "Table 6; so"}

    def test_a_file_of_excel(self, tmp_path):
        path, text = tmp_path / "published.csv", HEADER + "toy,Café,P@1,50\r\n"
        path.write_bytes(text.encode("utf-8-sig"))
        assert [result.method for result in read_published(str(path))] == ["Café"]
        path.write_bytes(text.encode("cp1252"))
        with pytest.raises(ValueError, match=r"published\.csv: not a CSV file in UTF-8 .*; save it as “CSV UTF-8”"):
            read_published(str(path))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("dataset,method\n", r"published\.csv: no column metric, value; expected dataset, method, metric, value"),
            ("", "no column dataset, method"),
            (
                HEADER + "toy,Mine,P@3,50\ntoy,Mine,P@1,high\n",
                r"line 3: expected a value from 0 to 100 percent, got 'high'",
            ),
            (HEADER + "toy,Mine,P@1,101\n", "got '101'"),
            (HEADER + "toy,Mine,P@1,nan\n", "got 'nan'"),
            (HEADER + "toy,Mine,P@1\n", "got ''"),
            (
                HEADER + "toy,Mine,P@1,50\ntoy,Mine,P@1,60\n",
                r"line 3: P@1 of Mine on toy is 60, and a line before says 50; give the method another name",
            ),
        ],
    )
    def test_faults_are_named(self, table, text, message):
        with pytest.raises(ValueError, match=message):
            read_published(table(text))

    def test_prototypes_and_what_else_is_published_of_a_method_are_two(self, table):
        results = read_published(
            table(HEADER + "toy,Mine,P@1,50\ntoy,Mine (θ),P@1,40\ntoy,Yours,P@1,30\ntoy,Theirs (θ),P@1,20\n")
        )
        assert [(each.method, each.values["P@1"]) for each in results] == [
            ("Mine", 0.5),
            ("Mine (θ)", 0.4),
            ("Yours", 0.3),
            ("Theirs (θ)", 0.2),
        ]
        for asked, found in (
            ("Mine", "Mine"),
            ("Mine (θ)", "Mine (θ)"),
            ("Yours (θ)", "Yours"),
            ("Theirs", "Theirs (θ)"),
        ):
            assert find_result(results, "toy", asked).method == found

    def test_a_copy_of_the_papers_tables_has_the_first_value_of_several(self, paper):
        copied = {(each.dataset, each.method): each.values for each in read_published(str(published._CARRIED))}
        assert copied["LF-AmazonTitles-1.3M", "NGAME (W)"]["PSP@1"] == pytest.approx(0.3001)
        assert len(copied) >= len(paper)

    def test_names_of_metrics_that_there_are_not_are_warned_of(self, table, caplog):
        read_published(table(HEADER + "toy,Mine,P@1,50\ntoy,Mine,p@3,40\ntoy,Mine,N@5,30\ntoy,Mine,hours,9\n"))
        assert "there are no metrics N@5, p@3; expected P@1, " in caplog.text

    def test_names_that_fit_no_data_set_or_several(self, table, caplog):
        results = read_published(table(HEADER + "toy,Mine,P@1,50\n"))
        warn_of_names(results, ["toy"], "a.csv")
        assert caplog.text == ""
        warn_of_names(results, ["toy", "toy", "other"], "a.csv")
        assert "published=a.csv has no results on other" in caplog.text
        assert "published=a.csv: its results on toy stand with each of 2 data sets of that name" in caplog.text

    def test_a_missing_file_is_named(self):
        with pytest.raises(
            FileNotFoundError, match=r"published=Paper: there is no such file; expected paper, or a CSV"
        ):
            read_published("Paper")

    def test_what_is_not_there_is_named(self, table):
        results = read_published(table(HEADER + "toy,Mine,P@1,50\ntoy,Yours,P@1,50\nother,Mine,P@1,50\n"))
        with pytest.raises(ValueError, match="no published results on toys; the data sets with some are: toy, other"):
            find_result(results, "toys", "Mine")
        with pytest.raises(ValueError, match=r"no published results of His on toy; expected one of\n  Mine\n  Yours$"):
            find_result(results, "toy", "His")

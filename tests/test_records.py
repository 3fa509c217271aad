"""Tidy tables: the arithmetic of rows, exact round trips, and one clear line for every damaged table."""

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frl_repro.basics import radii
from frl_repro.basics.errors import UserError
from frl_repro.results.tables import reading, schema, subsets, text_tables, writing
from frl_repro.results.tables.schema import CLASSWISE_COLUMNS

KEYS = {
    "run_id": "run-a",
    "dataset": "fashion_mnist",
    "model": "lenet5",
    "method": "natural",
    "seed": 0,
    "split": "test",
    "epoch": 2,
    "attack": "pgd-20",
    "epsilon": 8 / 255,
}
NAMES = ["Shirt", "Bag", "None"]
COUNT, NATURAL, BOUNDARY = [1000, 3, 7], [320, 0, 7], [570, 1, 0]


def make_rows(**keys):
    return writing.classwise_rows({**KEYS, **keys}, NAMES, COUNT, NATURAL, BOUNDARY)


def write(path, rows, columns=CLASSWISE_COLUMNS):
    writing.write_table(path, rows, columns)
    return path


@pytest.fixture
def table(tmp_path):
    return write(tmp_path / "classwise.csv", make_rows())


def spoil(path, column, value, row=0):
    """Replace one cell, as text."""
    cells = pd.read_csv(path, dtype=str, keep_default_na=False)
    cells.loc[row, column] = value
    cells.to_csv(path, index=False)


def test_rows_divide_counts_and_keep_the_keys():
    rows = make_rows(alpha_nat=5.0)
    assert [row["class_id"] for row in rows] == [0, 1, 2]
    assert rows[0] == {
        **KEYS,
        "alpha_nat": 5.0,
        "class_id": 0,
        "class_name": "Shirt",
        "count": 1000,
        "num_natural_errors": 320,
        "num_boundary_errors": 570,
        "natural_error": 0.32,
        "boundary_error": 0.57,
        "robust_error": 0.89,
    }


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1, max_size=20)
)
def test_robust_error_is_the_correctly_rounded_sum_of_counts(classes):
    natural, boundary, _ = (list(part) for part in zip(*classes, strict=True))
    count = [max(1, sum(one)) for one in classes]
    rows = writing.classwise_rows(KEYS, [str(i) for i in range(len(count))], count, natural, boundary)
    for row, total, n, b in zip(rows, count, natural, boundary, strict=True):
        assert row["robust_error"] == float(Fraction(n + b, total))
        assert 0 <= row["natural_error"] <= row["robust_error"] <= 1


def test_rows_refuse_what_cannot_be_counted():
    with pytest.raises(ValueError, match="keys lack run_id"):
        writing.classwise_rows({k: v for k, v in KEYS.items() if k != "run_id"}, NAMES, COUNT, NATURAL, BOUNDARY)
    with pytest.raises(ValueError, match=r"lengths \[2, 3\]"):
        writing.classwise_rows(KEYS, NAMES[:2], COUNT, NATURAL, BOUNDARY)
    with pytest.raises(ValueError, match="'Bag': 0 natural and 1 boundary errors among 0 samples"):
        writing.classwise_rows(KEYS, NAMES, [1000, 0, 7], NATURAL, BOUNDARY)
    with pytest.raises(ValueError, match="'None': 7 natural and 1 boundary errors among 7 samples"):
        writing.classwise_rows(KEYS, NAMES, COUNT, NATURAL, [0, 0, 1])


def test_table_has_fixed_bytes(tmp_path):
    rows = [{"a": 0.1 + 0.2, "b": np.float64(1e-05), "c": np.int64(3)}, {"a": None, "b": 16 / 255, "c": 'x,"y"'}]
    path = write(tmp_path / "t.csv", rows, ["a", "b", "c"])
    assert path.read_bytes() == b'a,b,c\n0.30000000000000004,1e-05,3\n,0.06274509803921569,"x,""y"""\n'


def test_table_refuses_rows_that_do_not_fit_the_header_and_leaves_the_old_file(tmp_path):
    path = write(tmp_path / "t.csv", [{"a": 1}], ["a"])
    with pytest.raises(ValueError, match=r"t\.csv: row and header differ in \['b'\]"):
        write(path, [{"a": 1}, {"a": 1, "b": 2}], ["a"])
    assert path.read_text() == "a\n1\n"
    assert list(tmp_path.iterdir()) == [path]


def test_reader_returns_what_was_written(table):
    df = reading.read_classwise(table)
    assert tuple(df.columns) == (*CLASSWISE_COLUMNS, *schema.SETTING_COLUMNS, schema.CHECKPOINT_COLUMN)
    assert (
        df[list(CLASSWISE_COLUMNS)].to_dict("records") == make_rows()
    )  # exact floats, a class called "None", integers as integers


def test_reader_keeps_further_columns_typed(tmp_path):
    columns = (*CLASSWISE_COLUMNS, "alpha_nat", "recipe")
    rows = make_rows(alpha_nat=5.0, recipe="report") + make_rows(epoch=3, alpha_nat=None, recipe="")
    df = reading.read_classwise(write(tmp_path / "t.csv", rows, columns))
    assert df["alpha_nat"].tolist()[:3] == [5.0] * 3
    assert df["alpha_nat"].isna().tolist() == [False] * 3 + [True] * 3
    assert df["recipe"].tolist() == ["report"] * 3 + [""] * 3


def test_reader_joins_files_and_counts_a_copied_run_once(tmp_path, table):
    copy = write(tmp_path / "copy.csv", make_rows())
    other = write(tmp_path / "other.csv", make_rows(run_id="run-b"))
    assert reading.read_classwise([table, copy, other])["run_id"].tolist() == ["run-a"] * 3 + ["run-b"] * 3


def test_reader_refuses_two_versions_of_a_run(tmp_path, table):
    changed = writing.classwise_rows(KEYS, NAMES, COUNT, [321, 0, 7], BOUNDARY)
    other = write(tmp_path / "other.csv", changed)
    with pytest.raises(UserError, match=r"'run-a' has different numbers .* in .*classwise\.csv and .*other\.csv"):
        reading.read_classwise([table, other])


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("count", "0", "row 1, column 'count': 0 is not at least 1"),
        ("count", "many", "row 1, column 'count': 'many' is not a finite number"),
        ("count", "", "row 1, column 'count': '' is not a finite number"),
        ("seed", "0.5", "row 1, column 'seed': 0.5 is not a whole number"),
        ("num_natural_errors", "-1", "column 'num_natural_errors': -1 is negative"),
        ("num_boundary_errors", "-1", "column 'num_boundary_errors': -1 is negative"),
        ("natural_error", "0.33", "column 'natural_error': 0.33 is not num_natural_errors / count"),
        ("boundary_error", "0.5", "column 'boundary_error': 0.5 is not num_boundary_errors / count"),
        ("robust_error", "0.9", r"column 'robust_error': 0.9 is not \(num_natural_errors \+ num_boundary"),
        ("robust_error", "1.2", r"column 'robust_error': 1.2 is outside \[0, 1\]"),
        ("robust_error", "nan", "column 'robust_error': 'nan' is not a finite number"),
        ("epsilon", "8", r"column 'epsilon': 8 is outside \[0, 1\]"),
        ("class_id", "1", "column 'class_id': run 'run-a', split 'test', epoch 2, epsilon 8/255 does not have each"),
    ],
)
def test_reader_names_file_row_and_column(table, column, value, message):
    spoil(table, column, value)
    with pytest.raises(UserError, match=rf"classwise\.csv, .*{message}") as caught:
        reading.read_classwise(table)
    assert "\n" not in str(caught.value)


def test_reader_names_a_missing_column_and_its_lookalike(table):
    table.write_text(table.read_text().replace("natural_error,", "natural_eror,", 1))
    with pytest.raises(UserError, match=r"classwise\.csv lacks column 'natural_error' \(it has 'natural_eror'\)"):
        reading.read_classwise(table)


def test_reader_notices_lost_rows(tmp_path):
    path = write(tmp_path / "t.csv", (make_rows() + make_rows(epoch=3))[:-1])
    with pytest.raises(UserError, match=r"epoch 3, .* does not have each of its 3 classes exactly once"):
        reading.read_classwise(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        ((",".join(CLASSWISE_COLUMNS) + "\n").encode(), "is empty: it has a header and no rows"),
        (b"a,b\n1,2,3\n1,2,3,4\n", "is not a CSV table"),
        (b"\xff\xfe\x00\x80", "is not a CSV table"),
        (b"only text\n1\n", "lacks column 'run_id'"),
    ],
)
def test_reader_refuses_what_is_no_table(tmp_path, content, message):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"t\.csv {message}") as caught:
        reading.read_classwise(path)
    assert "\n" not in str(caught.value)


def test_reader_refuses_a_folder_a_missing_file_and_nothing(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        reading.read_classwise(tmp_path)
    with pytest.raises(UserError, match=r"cannot read .*gone\.csv: No such file"):
        reading.read_classwise(tmp_path / "gone.csv")
    with pytest.raises(UserError, match=r"no classwise\.csv given"):
        reading.read_classwise([])


def test_tables_are_found_in_folders_globs_files_and_lists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [Path(f"{run}/classwise.csv") for run in ("a/run0", "a/run1", "b/lr=1,2[x]")]
    for path in [*paths, Path("a/run0/history.csv")]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert reading.find_tables(".") == paths
    assert reading.find_tables("a") == paths[:2]
    assert reading.find_tables("a/run*") == paths[:2]
    assert reading.find_tables("a/run0/*") == paths[:1]  # not history.csv
    assert reading.find_tables("**/classwise.csv") == paths
    assert reading.find_tables("a/run1, a/run0/classwise.csv,a") == paths[:2]
    assert reading.find_tables("b/lr=1,2[x]") == paths[2:]  # an existing name is taken literally
    assert reading.find_tables("a", name="history.csv") == [Path("a/run0/history.csv")]
    assert reading.find_tables(tmp_path / "b") == [tmp_path / paths[2]]


def test_finding_nothing_is_said(tmp_path):
    with pytest.raises(UserError, match=r"nothing found at .*gone"):
        reading.find_tables(tmp_path / "gone")
    with pytest.raises(UserError, match=r"no classwise\.csv under"):
        reading.find_tables(tmp_path)


def test_epsilon_is_selected_up_to_rounding(tmp_path):
    df = reading.read_classwise(write(tmp_path / "t.csv", make_rows() + make_rows(epsilon=16 / 255)))
    assert len(subsets.select_epsilon(df, float(np.float32(16 / 255)))) == 3
    with pytest.raises(UserError, match="no rows with epsilon=4/255; the tables have 8/255, 16/255"):
        subsets.select_epsilon(df, 4 / 255)


def test_split_and_last_epoch_are_selected(tmp_path):
    rows = make_rows() + make_rows(epoch=3) + make_rows(run_id="run-b", split="validation")
    df = reading.read_classwise(write(tmp_path / "t.csv", rows))
    last = subsets.select_last_epoch(df)
    assert set(zip(last["run_id"], last["epoch"], strict=True)) == {("run-a", 3), ("run-b", 2)}
    assert set(subsets.select_split(df, "validation")["run_id"]) == {"run-b"}
    with pytest.raises(UserError, match="no rows with split='train'; the tables have test, validation"):
        subsets.select_split(df, "train")


@pytest.mark.parametrize(
    ("epsilon", "text"),
    [
        (8 / 255, "8/255"),
        (0.0313725, "8/255"),
        (0.0, "0"),
        (1.0, "1"),
        (0.03, "0.03"),
        (0.5, "0.5"),
        (1 / 255, "1/255"),
    ],
)
def test_epsilons_are_written_as_people_do(epsilon, text):
    assert radii.format_epsilon(epsilon) == text


@given(st.integers(1, 254))
def test_fractions_survive_the_round_trip(levels):
    assert radii.parse_fraction(radii.format_epsilon(levels / 255)) == levels / 255


def test_fractions_are_parsed_or_refused():
    assert radii.parse_fraction("0.03") == 0.03
    assert radii.parse_fraction(" 8 / 255 ") == 8 / 255
    for text in ("abc", "", "1/0", "1/2/3", "nan", "inf", "/", "8/"):
        with pytest.raises(UserError, match=r"is not a number: write a decimal such as 0\.03 or a fraction"):
            radii.parse_fraction(text)


def test_overall_errors_weigh_classes_by_their_samples(table):
    (row,) = subsets.overall(reading.read_classwise(table)).to_dict("records")
    assert row["count"] == 1010
    assert row["overall_natural_error"] == 327 / 1010
    assert row["overall_boundary_error"] == 571 / 1010
    assert row["overall_robust_error"] == 898 / 1010
    assert (row["worst_class_natural_error"], row["worst_class_natural_error_name"]) == (1.0, "None")
    assert (row["worst_class_boundary_error"], row["worst_class_boundary_error_name"]) == (0.57, "Shirt")
    assert (row["worst_class_robust_error"], row["worst_class_robust_error_name"]) == (1.0, "None")


def test_overall_keeps_evaluations_apart(tmp_path):
    rows = make_rows(epsilon=16 / 255) + make_rows() + make_rows(run_id="run-b")
    result = subsets.overall(reading.read_classwise(write(tmp_path / "t.csv", rows)))
    assert list(zip(result["run_id"], result["epsilon"], strict=True)) == [
        ("run-a", 8 / 255),
        ("run-a", 16 / 255),
        ("run-b", 8 / 255),
    ]


def test_class_table_for_people(tmp_path):
    wider = writing.classwise_rows({**KEYS, "epsilon": 16 / 255}, NAMES, COUNT, NATURAL, [680, 3, 0])
    df = reading.read_classwise(write(tmp_path / "t.csv", make_rows(epoch=1) + make_rows() + wider))
    assert text_tables.class_table(df) == (
        "run-a: errors in percent, test split, epoch 2, 1010 samples (* worst class)\n"
        "class    natural  boundary  robust  boundary  robust\n"
        "                    pgd-20  pgd-20    pgd-20  pgd-20\n"
        "                     8/255   8/255    16/255  16/255\n"
        "----------------------------------------------------\n"
        "Shirt      32.0      57.0*   89.0      68.0   100.0\n"
        "Bag         0.0      33.3    33.3     100.0*  100.0\n"
        "None      100.0*      0.0   100.0*      0.0   100.0\n"
        "----------------------------------------------------\n"
        "overall    32.4      56.5    88.9      67.6   100.0\n"
    )


def test_class_table_shows_one_run_and_its_split(tmp_path):
    rows = make_rows(split="validation") + make_rows(run_id="run-b", split="validation")
    df = reading.read_classwise(write(tmp_path / "t.csv", rows))
    with pytest.raises(UserError, match="shows one run, got 2: run-a, run-b"):
        text_tables.class_table(df)
    with pytest.raises(UserError, match="no rows with split='test'"):
        text_tables.class_table(df[df["run_id"] == "run-a"])
    assert "validation split" in text_tables.class_table(df[df["run_id"] == "run-a"], split="validation")


def test_json_is_sorted_and_ends_with_a_newline(tmp_path):
    path = tmp_path / "run.json"
    writing.write_json(path, {"b": [1, 0.1], "a": "ε"})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "ε",\n  "b": [\n    1,\n    0.1\n  ]\n}\n'
    assert reading.read_json(path) == {"a": "ε", "b": [1, 0.1]}
    with pytest.raises(ValueError, match="JSON compliant"):
        writing.write_json(path, {"loss": math.nan})
    assert json.loads(path.read_text(encoding="utf-8"))["a"] == "ε"


def test_damaged_json_is_named(tmp_path):
    path = tmp_path / "run.json"
    with pytest.raises(UserError, match=r"cannot read .*run\.json: No such file"):
        reading.read_json(path)
    for content in (b'{"a": ', b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"run\.json is damaged, not valid JSON"):
            reading.read_json(path)


@pytest.mark.parametrize("num_files", [1, 4])
def test_tables_as_runs_write_them_are_read_at_once_and_the_same(tmp_path, num_files):
    files = []
    for number in range(num_files):
        settings = dict.fromkeys(schema.SETTING_COLUMNS) | {"alpha_nat": number / 3}
        rows = make_rows(run_id=f"run {number}", **settings) + make_rows(run_id=f"run {number}", epoch=3, **settings)
        files.append(write(tmp_path / f"{number}.csv", rows, schema.CLASSWISE_HEADER))
    at_once, one_by_one = reading._read_as_written(files), reading._read_one_by_one(files)
    pd.testing.assert_frame_equal(at_once[0], one_by_one[0])
    assert at_once[1] == one_by_one[1] == [6] * num_files
    assert reading.read_classwise(files).equals(one_by_one[0])


def test_one_table_in_another_shape_is_read_and_named_all_the_same(tmp_path):
    settings = dict.fromkeys(schema.SETTING_COLUMNS)
    sound = write(tmp_path / "sound.csv", make_rows(**settings), schema.CLASSWISE_HEADER)
    short = write(tmp_path / "short.csv", make_rows(run_id="b"))
    assert reading._read_as_written([sound, short]) is None
    assert len(reading.read_classwise([sound, short])) == 6
    other = write(tmp_path / "other.csv", make_rows(run_id="c", **settings), schema.CLASSWISE_HEADER)
    spoil(other, "count", "7.5")
    with pytest.raises(UserError, match=r"other\.csv, row 1, column 'count': 7.5 is not a whole number"):
        reading.read_classwise([sound, other])
    other.write_text(other.read_text().replace("7.5", "1000").replace("Bag", 'B"ag'))
    assert len(reading.read_classwise([sound, other])) == 6


def test_names_that_a_spreadsheet_would_run_are_written_as_text_and_read_back(tmp_path):
    names = ["=cmd()", "-x", "+1", "@a", "'=b", "'quoted'", "-1.5", "plain"]
    rows = writing.classwise_rows(
        {**dict.fromkeys(schema.MEASUREMENT_COLUMNS, "a"), "seed": 0, "epoch": 1, "epsilon": 0.1},
        names, *([[n] * len(names) for n in (4, 1, 1)]),
    )  # fmt: skip
    writing.write_table(tmp_path / "classwise.csv", rows, schema.CLASSWISE_COLUMNS)
    text = (tmp_path / "classwise.csv").read_text(encoding="utf-8")
    assert ",'=cmd(),4" in text
    assert ",plain,4" in text
    fast = reading.read_classwise(tmp_path / "classwise.csv")
    assert fast["class_name"].tolist() == names
    (tmp_path / "classwise.csv").write_text(text.replace("\n", "\r\n"), encoding="utf-8", newline="")
    assert reading.read_classwise(tmp_path / "classwise.csv")["class_name"].tolist() == names


def test_a_table_of_many_classes_shows_the_worst_and_the_best_and_no_name_steers_the_terminal(tmp_path):
    names = [f"c{k:02d}" for k in range(49)] + ["a\x1b[31m\n\u202eb"]
    keys = {**dict.fromkeys(schema.MEASUREMENT_COLUMNS, "a"), "seed": 0, "epoch": 1, "epsilon": 0.1, "split": "test"}
    rows = writing.classwise_rows(keys, names, [100] * 50, list(range(50)), [0] * 50)
    text = text_tables.class_table(pd.DataFrame(rows), top=2)
    lines = text.splitlines()
    assert "the 2 worst and the 2 best of 50 classes by the last column, top= changes how many" in lines[0]
    shown = [line.split("  ")[0] for line in lines[5:10]]
    assert shown == [r"a\x1b[31m\n\u202eb", "c48", "(46 between, mean)", "c01", "c00"]
    assert [line.split()[-1] for line in lines[5:10]] == ["49.0*", "48.0", "24.5", "1.0", "0.0"]
    assert text.isprintable() or set(text) - {"\n"} == {c for c in text if c.isprintable()}

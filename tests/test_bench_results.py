"""The bench's verdicts, rankings, documentation and page, from made-up tables of registered runs."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bench_runs import CLASSES, class_errors, write_runs
from frl_repro.basics.errors import UserError
from frl_repro.commands import bench_published
from frl_repro.commands import report as report_command
from frl_repro.results.protocol import CNN_SMALL, CONTESTANTS, LENET5, RESNET8
from frl_repro.results.registration import bench_runs
from frl_repro.results.report.bench import leaderboard
from frl_repro.results.report.bench_advice import advice
from frl_repro.results.report.bench_docs import NO_RUNS, bench_tables
from frl_repro.results.report.bench_files import write_bench
from frl_repro.results.report.bench_front import front_methods
from frl_repro.results.report.bench_models import Model, read_bench
from frl_repro.results.report.bench_ranks import agreements
from frl_repro.results.report.bench_verdicts import fate_of, judge
from frl_repro.results.report.markdown import rewrite
from support import ROOT

METHODS = ("finetune", "ema", "dafa", "wat", "reweight")
TRACKS = (LENET5, CNN_SMALL)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    write_runs(root, tracks=TRACKS, methods=METHODS)
    return root


@pytest.fixture(scope="module")
def files(tables):
    return write_bench([tables / track for track in TRACKS], tables / "out", draws_files=False)


def expected_difference(track, start, method, radius):
    """What the made-up errors of the chosen runs say, computed from their definition alone."""
    epsilon = {"8/255": 8 / 255, "16/255": 16 / 255}[radius]
    radii = ("8/255",) if track == CNN_SMALL else ("8/255", "16/255")

    def counts(run, eps, number):
        return np.round(class_errors(run, eps, run.seed) * number) / number

    def worst(of, seed):
        candidates = [
            run
            for run in bench_runs().values()
            if (run.track, run.start, run.method, run.seed) == (track, start, of, seed)
        ]
        values = {"8/255": 8 / 255, "16/255": 16 / 255}

        def score(run):  # rounded: equal counts tie, and a tie goes to the first
            return round(float(np.mean([counts(run, values[r], 400).max() for r in radii])), 12)

        chosen = min(candidates, key=score)
        named = counts(chosen, epsilon, 400).argmax()
        return counts(chosen, epsilon, 1000)[named]

    return np.array([worst(method, seed) - worst("finetune", seed) for seed in (20, 21, 22, 23, 24)])


@pytest.mark.parametrize(("track", "start", "method", "radius"), [
    (LENET5, "scratch", "dafa", "16/255"), (LENET5, "base", "reweight", "8/255"),
    (CNN_SMALL, "scratch", "wat", "8/255"),
])  # fmt: skip
def test_differences_are_those_of_the_settings_that_selection_images_prefer(files, track, start, method, radius):
    board = files.board.set_index(["track", "start", "method", "criterion", "epsilon"])
    row = board.loc[(track, start, method, "worst class", radius)]
    values = expected_difference(track, start, method, radius)
    assert row["difference"] == pytest.approx(values.mean())
    half = stats.t.ppf(0.975, 4) * values.std(ddof=1) / np.sqrt(5)
    assert row["difference_low"] == pytest.approx(values.mean() - half)
    assert row["num_seeds"] == 5
    assert row["autoattack_seeds"] == 3


def test_every_number_of_the_documentation_comes_from_the_tables(tables, files, tmp_path):
    page = tmp_path / "bench.md"
    shutil.copy(ROOT / "docs" / "bench.md", page)
    filled = rewrite(page, bench_tables(files.bench, files.board))
    text = filled[filled.index("## Results") :]
    marked = "".join(re.findall(r"<!-- table: .*?<!-- end -->", text, flags=re.DOTALL))
    outside = re.sub(r"<!-- table: .*?<!-- end -->", "", text, flags=re.DOTALL)
    # Beside the marked tables there are names of networks and data alone.
    assert set(re.findall(r"\d+", outside)) <= {"5", "10", "8"}
    assert marked.count("\n| `dafa` |") >= 6
    # Other tables give other numbers: nothing is typed by hand.
    other = files.board.assign(**{n: files.board[n] + 0.1 for n in ("robust_average", "robust_worst", "difference")})
    assert rewrite(page, bench_tables(files.bench, other)) != filled
    row = files.board[(files.board["method"] == "dafa") & (files.board["track"] == CNN_SMALL)].iloc[0]
    numbers = [f"{100 * row[name]:.1f}" for name in ("robust_average", "robust_worst")]
    (line,) = [one for one in _table(filled, f"bench-{CNN_SMALL}").splitlines() if one.startswith("| `dafa`")]
    assert set(numbers) <= set(line.replace("|", " ").split())


def _table(text, name):
    return re.search(rf"<!-- table: {name} -->\n(.*?)<!-- end -->", text, re.DOTALL)[1]


def test_the_committed_page_is_what_the_committed_tables_give(tmp_path):
    committed = ROOT / "outputs" / "reference" / "bench"
    folders = [folder for folder in sorted(committed.glob("*")) if any(folder.glob("*/classwise.csv"))]
    bench = read_bench(folders) if folders else None
    made = bench_tables(bench, None if bench is None else leaderboard(bench))
    text = (ROOT / "docs" / "bench.md").read_text()
    for name, table in made.items():
        assert _table(text, name) == table()


def test_advice_names_the_best_with_its_numbers_and_what_lies_near(files):
    sentences = advice(files.board)
    rows = files.board[(files.board["criterion"] == "worst class") & files.board["difference"].notna()]
    rows = rows[(rows["track"] == LENET5) & (rows["method"] != "ema")]  # a control is no method
    means = rows.groupby(["method", "start"])["robust_worst"].mean().sort_values()
    (method, start), near = means.index[0], means.index[1:][means.iloc[1:] < means.iloc[0] + 0.01]
    assert f": `{method}` from {'a base' if start == 'base' else start} (5 seeds)." in sentences[0]
    values = expected_difference(LENET5, start, method, "16/255")
    assert f" and {100 * values.mean():+.1f} [" in sentences[0]
    for other, of_start in means.index[1:]:
        name = f"`{other}` from {'a base' if of_start == 'base' else of_start}"
        assert (name in sentences[0]) == ((other, of_start) in near)
    # On CIFAR-10 every made-up method costs more than a point.
    assert any(one.startswith("No method on CIFAR-10 with cnn_small costs at most a point") for one in sentences)


def test_advice_without_runs_is_none(files):
    assert advice(files.board.iloc[:0]) == []


def test_without_runs_every_table_says_so():
    assert {make() for make in bench_tables(None, None).values()} == {NO_RUNS}


def test_a_claim_survives_where_both_deciding_tracks_reproduce_it(files):
    answers = judge(files.board)
    by_place = {(one.track, one.start, one.method): one for one in answers}
    dafa = by_place[LENET5, "scratch", "dafa"]
    assert [(one.kind, one.radius) for one in dafa.evidence] == [
        ("gain", "8/255"), ("price", "8/255"), ("gain", "16/255"), ("price", "16/255")
    ]  # fmt: skip
    assert dafa.is_published_start
    assert not by_place[LENET5, "base", "dafa"].is_published_start
    assert {one.num_comparisons for one in dafa.evidence} == {6}  # ema, reweight, dafa and wat, the latter two twice
    assert fate_of("csr", answers) == "open"  # it did not run


@pytest.mark.parametrize(("gain", "price", "verdict", "fate"), [
    ((-0.10, 0.01, 0.001), (0.002, 0.004, 0.01), "reproduced", "survives"),
    ((-0.10, 0.01, 0.001), (0.030, 0.004, 0.01), "mixed", "open"),  # dearer than its price of 1 point
    ((-0.10, 0.20, 0.300), (0.010, 0.090, 0.60), "too uncertain to say", "open"),
    ((0.050, 0.01, 0.001), (0.030, 0.004, 0.01), "contradicted", "fails"),
    ((0.001, 0.005, 0.001), (0.011, 0.004, 0.6), "contradicted", "fails"),  # no difference at all
])  # fmt: skip
def test_the_verdict_follows_gain_and_price_at_every_radius(files, gain, price, verdict, fate):
    board = files.board.copy()
    for name, p, (estimate, half, value) in (
        ("difference", "adjusted_p", gain), ("average_difference", "average_adjusted_p", price)
    ):  # fmt: skip
        board[name], board[f"{name}_low"], board[f"{name}_high"] = estimate, estimate - half, estimate + half
        board[p] = value
    answers = judge(board)
    assert {one.verdict for one in answers if one.method == "dafa"} == {verdict}
    assert fate_of("dafa", answers) == fate


def test_a_seed_is_missing_and_the_verdict_is_incomplete(tmp_path):
    write_runs(tmp_path, tracks=TRACKS, methods=("finetune", "dafa"), seeds=(20, 21, 22, 23))
    board = leaderboard(read_bench([tmp_path / track for track in TRACKS]))
    assert {one.verdict for one in judge(board)} == {"incomplete"}
    assert set(board["num_seeds"]) == {4}


def test_a_seed_counts_once_every_registered_setting_has_run(tmp_path):
    write_runs(tmp_path, tracks=(LENET5,), methods=("finetune", "dafa"), seeds=(20, 21))
    run = next(name for name, one in bench_runs().items() if one.method == "dafa" and one.seed == 21)
    shutil.rmtree(tmp_path / LENET5 / run)
    bench = read_bench(tmp_path / LENET5)
    start = bench_runs()[run].start
    assert list(bench.chosen(LENET5, start, "dafa", "worst class")) == [20]
    assert list(bench.chosen(LENET5, start, "finetune", "worst class")) == [20, 21]


def test_rankings_agree_as_spearmans_correlation_says(files):
    found = {(one.between, one.one): one for one in agreements(files.bench, num_resamples=200)}
    one = found["radii", f"{LENET5}, 8/255"]
    board = files.board[(files.board["track"] == LENET5) & (files.board["criterion"] == "worst class")]
    wide = board[board["method"] != "base"].pivot_table(
        index=["start", "method"], columns="epsilon", values="robust_worst"
    )
    assert one.interval.estimate == pytest.approx(stats.spearmanr(wide["8/255"], wide["16/255"]).statistic)
    assert one.num_methods == len(wide)
    assert one.interval.low <= one.interval.estimate <= one.interval.high
    attacks = found["attacks", f"{LENET5}, 8/255, PGD-20"]
    assert attacks.num_seeds == 3


def test_methods_are_picked_only_from_tracks_that_have_run(tmp_path):
    write_runs(tmp_path, tracks=TRACKS, methods=("finetune",), seeds=(20,))
    bench = read_bench([tmp_path / track for track in TRACKS])
    with pytest.raises(UserError, match="has 0 finished seeds"):
        front_methods(bench)


def test_the_front_of_two_tracks_picks_five_methods_with_the_setting_that_most_seeds_chose(tmp_path):
    candidates = [name for name, one in CONTESTANTS.items() if not one.is_control and not one.needs_imbalance]
    write_runs(tmp_path, tracks=TRACKS, methods=candidates, seeds=(20, 21, 22), autoattack=False)
    bench = read_bench([tmp_path / track for track in TRACKS])
    board = leaderboard(bench)
    board = board[board["criterion"] == "worst class"]
    on_a_front, ranks = set(), dict.fromkeys(candidates, 0.0)
    for track in TRACKS:
        errors = {}
        for name in candidates:
            is_own = (board["track"] == track) & (board["method"] == name)
            rows = board[is_own & (board["start"] == CONTESTANTS[name].starts[0])]
            errors[name] = (rows["robust_average"].mean(), rows["robust_worst"].mean())
        for name, (average, worst) in errors.items():
            ranks[name] += sum(other[1] < worst for other in errors.values())
            if not any(other[0] <= average and other[1] <= worst for key, other in errors.items() if key != name):
                on_a_front.add(name)
    expected = sorted(candidates, key=lambda name: (name not in on_a_front, ranks[name], candidates.index(name)))[:5]
    picked = front_methods(bench)
    assert list(picked) == expected
    for name, setting in picked.items():
        chosen = bench.chosen(CNN_SMALL, CONTESTANTS[name].starts[0], name, "worst class").values()
        counts = {one: sum(model.setting == one for model in chosen) for one in CONTESTANTS[name].settings}
        assert counts[setting] == max(counts.values())


def test_published_runs_are_copied_without_weights_and_skipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_runs(tmp_path / "written", tracks=(RESNET8,), methods=("finetune",), seeds=(20,))
    runs = tmp_path / "outputs" / "bench"
    shutil.copytree(tmp_path / "written" / RESNET8, runs)
    (folder, *_) = [path for path in runs.iterdir() if path.name in bench_runs()]
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "done.json").write_text("{}")
    assert not bench_published.is_published(folder.name)
    assert bench_published.publish(runs) == 1
    assert bench_published.is_published(folder.name)
    target = tmp_path / bench_published.PUBLISHED / RESNET8 / folder.name
    assert sorted(path.name for path in target.iterdir()) == ["classwise.csv", "policy.csv", "run.json"]


def test_the_page_is_one_file_whose_rows_lead_to_their_models(files, tables):
    page = (tables / "out" / "leaderboard.html").read_text()
    assert "https://" not in re.sub(r'xmlns[^=]*="[^"]*"|<!DOCTYPE[^>]*>', "", page)
    links = set(re.findall(r'href="#(run-[^"]+)"', page))
    anchors = re.findall(r'<details class="model" id="([^"]+)"', page)
    assert links == set(anchors)
    assert len(anchors) == len(set(anchors))
    assert page.count('class="thumbnail"') > 0
    assert "currentColor" in page
    figures = re.findall(r"<svg(?! class).*?</svg>", page, flags=re.DOTALL)
    assert figures
    assert not any("#000000" in one or "#ffffff" in one for one in figures)


def test_of_a_hundred_classes_the_page_shows_the_worst_and_the_best(files):
    from dataclasses import replace

    from frl_repro.results.report.bench_details import details

    def widened(model: Model) -> Model:
        def wide(errors):
            return {key: np.tile(values, 10) for key, values in errors.items()}

        return replace(
            model, selection=wide(model.selection), test=wide(model.test), shares=np.full(100, 0.01), autoattack={}
        )

    models = {place: [widened(one) for one in of] for place, of in files.bench.models.items()}
    names = {track: [f"class {n}" for n in range(100)] for track in TRACKS}
    one = details(replace(files.bench, models=models, class_names=names))[0]
    assert len(one.classes.rows) == 21
    assert "of 100" in one.classes.caption
    assert CLASSES[0] not in [row[0].text for row in one.classes.rows]


def test_make_report_writes_page_table_and_documentation_of_the_bench(tables, tmp_path, monkeypatch):
    reference = tmp_path / "reference"
    shutil.copytree(ROOT / "outputs" / "reference" / "exp1", reference / "exp1")
    for track in TRACKS:
        shutil.copytree(tables / track, reference / "bench" / track)
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "bench.md").write_text("# Bench\n\n<!-- table: bench-claims -->\n<!-- end -->\n")
    arguments = [f"runs={reference}", f"out={reference}", f"docs={docs}", "figures=false"]
    assert report_command.main(arguments) == 0
    assert "| `dafa` |" in (docs / "bench.md").read_text()
    board = pd.read_csv(reference / "bench" / "leaderboard.csv")
    assert set(board["track"]) == set(TRACKS)
    # The study's own page does not list the bench's runs.
    assert not any(name in (reference / "report.html").read_text() for name in bench_runs())

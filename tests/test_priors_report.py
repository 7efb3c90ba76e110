"""Studies over several priors: run, resumed, searched, and what reports say of them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drivers import here

import ddstudy
from ddstudy.report import priors
from ddstudy.report.intervals import mean_of
from ddstudy.report.panels import parse_panel
from ddstudy.spec.files import read_spec
from ddstudy.store.database import Store

STUDY = """
{head}

[target]
file = "image.npy"

[task]
kind = "denoise"
sigma = 0.1

[space]
k = [4]
iterations = [10, 20]

[[space.prior]]
kind = ["deep_decoder", "conv_decoder"]
s = [4]
l = [2]

[[space.prior]]
kind = "deep_decoder_2019"
l = [2]
k = [4, 8]
fit.learning_rate = [0.01, 0.02]

[[space.prior]]
kind = "dip"
l = [2]
iterations = [10]

[[space.prior]]
kind = "siren"
k = [16]
l = [1]
fit.learning_rate = [0.001]

[[space.prior]]
kind = ["tv", "wavelet", "nlm"]
strength = [0.05, 0.1]

[fit]
members = 2
check_every = 10
device = "cpu"

[stability]
min_psnr = 0
cv_percent = 100
max_vif = 100
"""
GRID = 2 + 2 + 2 * 2 * 2 + 1 + 2 + 3 * 2
HEADS = {
    "grid": "",
    "tpe": 'search = {sampler = "tpe"}',
    "gp": 'search = {sampler = "gp"}',
    "nsga2": 'objectives = {psnr = "maximize", seconds = "minimize"}\nsearch = {sampler = "nsga2"}',
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows, columns = np.mgrid[0:32, 0:32] / 32
    np.save(tmp_path / "image.npy", 0.5 + 0.4 * np.sin(6 * rows) * np.cos(4 * columns))
    return tmp_path


def write(folder: Path, head: str) -> str:
    (folder / "study.toml").write_text(STUDY.format(head=HEADS[head]))
    return f"sqlite:///{folder}/store.db"


@pytest.mark.parametrize("head", HEADS)
def test_a_study_over_priors_is_measured_once_and_whole(folder: Path, head: str) -> None:
    """Every setting of the union by any sampler, on one store in two sittings; no other."""
    url = write(folder, head)
    space = read_spec(folder / "study.toml").search_space
    assert len(space) == GRID
    for trials in (8, 100):
        code, printed = here("run", "study.toml", "--trials", str(trials), "--store", url)
        assert code == 0, printed
    with Store(url, read_only=True) as store:
        view = store.view("study")
    assert not view.left_out
    assert sorted(record.setting.id for record in view.records if record.has_result) == sorted(s.id for s in space)
    rows = view.trials.set_index("prior.kind")
    handcrafted = rows.loc[["tv", "wavelet", "nlm"]]
    assert (handcrafted[["iterations", "iterations_done", "parameters", "cv_percent"]] == 0).all(axis=None)
    assert handcrafted["k"].isna().all()
    assert set(rows.loc["tv", "engine"]) == {"direct float32"}
    assert set(rows.loc["deep_decoder_2019", "engine"]) == {"fused float32"}
    assert set(rows.loc["siren", "engine"]) == {"reference float32"}
    code, printed = here("run", "study.toml", "--trials", "100", "--store", url)
    assert "Nothing left to do" in printed
    if head in ("grid", "nsga2"):
        for command in (("report", "study", "--out", "page.html"), ("status",), ("export", "study", "--out", "out")):
            code, printed = here(*command, "--store", url)
            assert code == 0, printed
        page = (folder / "page.html").read_text()
        assert "Best setting of each prior" in page
        assert all(kind in page for kind in rows.index)


def test_a_union_reuses_what_was_measured_without_one(folder: Path) -> None:
    url = write(folder, "grid")
    text = (folder / "study.toml").read_text()
    first, last = text.index("[[space.prior]]"), text.index("[fit]")
    plain = text[:first] + "s = [4]\nl = [2]\n\n" + text[last:]
    (folder / "plain.toml").write_text(plain)
    for command in (("run", "plain.toml"), ("run", "study.toml", "--trials", "4", "--reuse", "plain")):
        code, printed = here(*command, "--store", url)
        assert code == 0, printed
    with Store(url, read_only=True) as store:
        rows, old = store.view("study").trials, store.view("plain").trials
    reused = rows[rows["reused_from"].notna()]
    assert list(reused["prior.kind"]) == ["deep_decoder"] * 2
    assert sorted(reused["psnr"]) == sorted(old["psnr"])
    assert set(reused["fit_id"]) == {"k4-s4-l2-uniform-1x1"}


def test_a_union_may_grow(folder: Path) -> None:
    url = write(folder, "grid")
    code, printed = here("run", "study.toml", "--trials", "3", "--store", url)
    assert code == 0, printed
    text = (folder / "study.toml").read_text()
    (folder / "study.toml").write_text(text.replace("strength = [0.05, 0.1]", "strength = [0.05, 0.1, 0.2]"))
    code, printed = here("run", "study.toml", "--store", url)
    assert code == 0, printed
    with Store(url, read_only=True) as store:
        assert store.view("study").measured == GRID + 3
    (folder / "study.toml").write_text(text)
    code, printed = here("run", "study.toml", "--store", url)
    assert code == 2
    assert "space.prior" in printed


def test_a_fit_of_the_study_is_a_fit_of_the_function(folder: Path) -> None:
    """The same prior, measurement and numbers, whether by a study or `ddstudy.fit`; seeds differ by identity only."""
    url = write(folder, "grid")
    code, printed = here("run", "study.toml", "--store", url)
    assert code == 0, printed
    study = ddstudy.open_study("study", url)
    rows = study.trials
    row = rows[(rows["prior.kind"] == "nlm") & (rows["prior.strength"] == 0.1)].iloc[0]
    found = ddstudy.fit(
        folder / "image.npy", prior={"kind": "nlm", "strength": 0.1}, task={"kind": "denoise", "sigma": 0.1}
    )
    assert found.psnr == row["psnr"]
    assert found.values["baseline"] == row["baseline"]
    assert ddstudy.fit(folder / "image.npy", **study.options(row)).psnr == row["psnr"]
    best = int(study.best.loc["psnr", "number"])
    arguments = ["fit", "--study", "study", "--store", url, "--out", "out"]
    code, chosen = here(*arguments)
    assert code == 0, chosen
    assert f"{study.best.loc['psnr', 'psnr']:.2f}" in chosen
    code, same = here(*arguments, "image.npy", "--trial", str(best))
    assert code == 0, same
    for more, said in (
        (["--k", "3"], "--k and --study exclude each other"),
        (["--trial", "999"], "no finished trial 999"),
    ):
        code, printed = here(*arguments, *more)
        assert code == 2
        assert said in printed
    code, printed = here("fit", "--trial", "3")
    assert code == 2
    assert "--trial is of a study" in printed


def test_ddstudy_fit_takes_priors_and_refuses_what_they_have_not(folder: Path) -> None:
    for words in (["tv", "--strength", "0.2"], ["siren", "--k", "8", "--l", "1", "--iterations", "2", "--omega", "10"]):
        code, printed = here("fit", "image.npy", "--prior", *words, "--members", "1", "--device", "cpu", "--out", "out")
        assert code == 0, printed
        assert words[0] in printed
    for words, message in (
        (["tv", "--omega", "3"], "--omega means nothing for --prior tv"),
        (["dip", "--s", "4"], "space.s is for prior.kind = 'deep_decoder' or 'conv_decoder' only"),
        (["unet"], "prior.kind: input should be 'deep_decoder'"),
        (["siren", "--engine", "fused"], "fit.engine = 'fused' is for"),
    ):
        code, printed = here("fit", "image.npy", "--prior", *words)
        assert code == 2
        assert message in " ".join(printed.split())


def test_a_union_in_two_sittings_has_the_numbers_of_one(folder: Path) -> None:
    url = write(folder, "grid")
    code, printed = here("run", "study.toml", "--store", f"sqlite:///{folder}/whole.db")
    assert code == 0, printed
    code, printed = here("run", "study.toml", "--trials", "5", "--store", url)
    code, printed = here("run", "study.toml", "--store", url)
    assert code == 0, printed
    tables = []
    for name in ("whole", "store"):
        with Store(f"sqlite:///{folder}/{name}.db", read_only=True) as store:
            rows = store.view("study").trials
            tables.append(rows.sort_values(["fit_id", "iterations"])["psnr"].tolist())
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("name", "study"),
    [
        ("dip", 'prior = {kind = "dip"}\nspace = {k = [4], l = [2], iterations = [5, 10]}'),
        ("tv", 'prior = {kind = "tv"}\nspace = {"prior.strength" = [0.05, 0.1]}'),
        ("both", 'space = {"prior.kind" = ["deep_decoder_2019", "wavelet"], k = [4], l = [2], iterations = [5, 10]}'),
    ],
)
def test_a_study_of_other_priors_is_shown_without_what_they_lack(folder: Path, name: str, study: str) -> None:
    """No scale factor, no members, no noise; and findings of several priors, of one none."""
    target = 'target = {file = "image.npy"}\nfit = {members = 2, device = "cpu"}'
    (folder / f"{name}.toml").write_text(f"{study}\n{target}\n[stability]\nmin_psnr = 0\ncv_percent = 100\n")
    url = f"sqlite:///{folder}/store.db"
    dashboard = Path(__file__).parent.parent / "dashboards" / "thesis.toml"
    for command in (
        *(("run", f"{name}.toml"), ("report", name, "--out", "page.html"), ("status",), ("export", name)),
        *(("report", name, "--dashboard", str(dashboard), "--out", "thesis.html"), ("logs", name)),
    ):
        code, printed = here(*command, "--store", url)
        assert code == 0, printed
    code, printed = here("findings", name, "--store", url)
    assert code == 0
    told = " ".join(printed.split())
    assert ("its findings and tables are not tested on other priors" in told) == (name != "both")
    assert ("time-variant" in told) == (name == "both")
    assert "-i0" not in here("status", "--store", url)[1]
    page = (folder / "page.html").read_text()
    assert ("Gain of the ensemble" in page) == (name != "tv")
    assert ("Best setting of each prior" in page) == (name == "both")
    with pytest.raises(ddstudy.UserError, match="other priors\nValid: a study without a"):
        ddstudy.open_study(name, url).published("4.3")


# tables


def trial(number: int, kind: str, psnr: float, members: list[float], **more: object) -> dict[str, object]:
    return {
        "number": number, "state": "COMPLETE", "stable": True, "prior.kind": kind, "psnr": psnr, "seconds": 1 + number,
        "parameters": 10 * number, "shared": False, "iterations": 1, "iterations_done": 1, "task.seed": 0, "k": 1,
        **{f"psnr_member_{i}": score for i, score in enumerate(members)}, **more,
    }  # fmt: skip


def test_the_gain_of_one_trial_is_over_its_members() -> None:
    trials = pd.DataFrame([
        trial(0, "tv", 26.0, [26.0]), trial(1, "nlm", 27.0, [27.0]), trial(2, "dip", 29.0, [28.0, 28.5, 28.2]),
        trial(3, "dip", 28.0, [27.0, 27.0, 27.0], k=2), trial(4, "dip", 40.0, [40.0, 40.0], k=3, stable=False),
        trial(5, "siren", 25.0, [24.0, 24.0]),
    ])  # fmt: skip
    table = priors.best_of_each(trials, ["k", "prior.kind"], [], "psnr").set_index("prior.kind")
    assert list(table.index) == ["dip", "nlm", "tv", "siren"]
    assert table.loc["dip", "number"] == 2
    assert table.loc["dip", ["seconds", "parameters", "n"]].tolist() == [3.0, 20, 1]
    expected = mean_of(np.array([28.0, 28.5, 28.2]) - 27)
    assert table.loc["dip", ["gain", "gain_low", "gain_high", "over"]].tolist() == [
        pytest.approx(expected.mean), pytest.approx(expected.low), pytest.approx(expected.high), "members",
    ]  # fmt: skip
    assert table.loc["siren", ["gain", "gain_low", "gain_high"]].tolist() == [-3, -3, -3]
    assert table.loc[["nlm", "tv"], "gain"].isna().all()


def test_the_gain_of_several_seeds_is_paired_by_measurement() -> None:
    rows = [trial(seed, "tv", 25.0 + 3 * seed, [], **{"task.seed": seed}) for seed in range(4)]
    rows += [trial(10 + seed, "dip", 26 + 3.1 * seed, [1.0, 2.0], **{"task.seed": seed}) for seed in range(4)]
    rows += [trial(20 + seed, "dip", 30.0, [], k=2, stable=seed != 1, **{"task.seed": seed}) for seed in range(4)]
    table = priors.best_of_each(pd.DataFrame(rows), ["k", "prior.kind", "task.seed"], [], "psnr")
    table = table.set_index("prior.kind")
    expected = mean_of([1.0, 1.1, 1.2, 1.3])
    assert table.loc["dip", "k"] == 1  # the other is not stable on all
    assert table.loc["dip", ["n", "over"]].tolist() == [4, "seeds"]
    assert table.loc["dip", "gain_low"] == pytest.approx(expected.low)
    assert table.loc["dip", "gain"] == pytest.approx(1.15)


def test_levels_of_a_task_are_not_mixed() -> None:
    rows = [
        trial(i, kind, psnr, [], **{"task.sigma": sigma})
        for i, (kind, sigma, psnr) in enumerate([("tv", 0.1, 26), ("dip", 0.1, 27), ("tv", 0.2, 22), ("dip", 0.2, 21)])
    ]
    table = priors.best_of_each(pd.DataFrame(rows), ["prior.kind", "task.sigma"], ["task.sigma"], "psnr")
    assert table[["task.sigma", "prior.kind", "psnr"]].to_numpy().tolist() == [
        [0.1, "dip", 27], [0.1, "tv", 26], [0.2, "tv", 22], [0.2, "dip", 21],
    ]  # fmt: skip
    assert table["gain"].dropna().tolist() == [1, -1]
    fronts = priors.fronts(pd.DataFrame(rows), ["task.sigma"], "seconds", "psnr")
    assert sorted(fronts["study"]) == ["dip, sigma 0.1", "dip, sigma 0.2", "tv, sigma 0.1", "tv, sigma 0.2"]


def test_the_panel_is_on_pages_of_several_priors_only() -> None:
    panel = parse_panel({"kind": "priors", "title": "Priors", "y": "psnr"}, "here")
    assert panel.kind == "priors"
    with pytest.raises(ddstudy.UserError, match="y: missing"):
        parse_panel({"kind": "priors", "title": "Priors"}, "here")

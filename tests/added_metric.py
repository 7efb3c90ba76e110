"""ddstudy with one more metric, the mean absolute error: one entry in the text of the registry and nothing else.

A process of its own, since the names of metrics are read while ddstudy is imported.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd

NAME = "ddstudy.images.metrics"
ENTRY = """
        Metric("mae", "minimize", "mean absolute error", "", 4,
               function=lambda images: [float(np.mean(np.abs(one - images.target))) for one in images.outputs]),
"""
STUDY = """
images = false
[target]
file = "target.npy"
[space]
k = [4]
s = [4]
l = [2]
iterations = [5, 10]
[fit]
members = 2
check_every = 5
[objectives]
mae = "minimize"
[stability]
prune = false
cv_percent = 1000
min_psnr = 0
[search]
sampler = "random"
"""

spec = importlib.util.find_spec(NAME)
assert spec is not None
assert spec.origin is not None
text = Path(spec.origin).read_text()
before = '        Metric("seconds"'
assert text.count(before) == 1
module = importlib.util.module_from_spec(spec)
sys.modules[NAME] = module
exec(compile(text.replace(before, ENTRY + before), spec.origin, "exec"), vars(module))

from typer.testing import CliRunner  # noqa: E402

from ddstudy.cli import app  # noqa: E402
from ddstudy.report import tables  # noqa: E402
from ddstudy.store.database import Store  # noqa: E402


def command(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exception is None, (words, done.output, done.exception)
    return done.output


rng = np.random.default_rng(0)
np.save("target.npy", rng.random((27, 22)).astype(np.float32))
Path("study.toml").write_text(STUDY)
Path("wrong.toml").write_text(STUDY.replace("mae =", "maee ="))
Path("panels.toml").write_text("[[panel]]\nkind = 'quartiles'\ntitle = 't'\nx = 'iterations'\ny = 'mae'\n")

assert '"mae"' in str(CliRunner().invoke(app, ["validate", "wrong.toml"]).exception)
assert "mae" in command("run", "study.toml")
with Store("sqlite:///ddstudy.db", read_only=True) as store:
    view = store.view("study")
assert [trial.value for trial in view.records] == view.trials["mae"].tolist()
assert view.trials["mae"].between(0, 1).all()
assert view.trials["mae_1dd"].ge(view.trials["mae"]).all()  # the mean of images is no worse than they are on average
best = tables.best_by_metric(view.trials).set_index("metric").loc["mae"]
assert best["value"] == view.trials["mae"].min()
command("export", "study", "--out", "trials")
assert np.allclose(pd.read_csv("trials.csv")["mae"], view.trials["mae"])
command("report", "study", "--dashboard", "panels.toml", "--out", "report.html")
page = Path("report.html").read_text()
assert "mean absolute error over stable trials" in page.lower()
assert f"{view.trials['mae'].min():.4f}" in page
# piq's networks cost seconds that every process would pay
assert "piq.ssim" in sys.modules
assert not {"piq", "torchvision", "torch._dynamo"} & set(sys.modules)
import piq  # noqa: E402

assert piq.ssim is sys.modules["piq.ssim"].ssim
assert piq.SSIMLoss

"""Points of the thesis' space, by the values of its options in their usual order."""

from ddstudy.spec.axes import Fit, Setting
from ddstudy.spec.options import THESIS


def setting_of(k: int, s: int, l: int, iterations: int, noise: str, tiling: str) -> Setting:
    return Setting(dict(zip(THESIS, (k, s, l, iterations, noise, tiling), strict=True)))


def fit_of(k: int, s: int, l: int, noise: str, tiling: str) -> Fit:
    return setting_of(k, s, l, 1, noise, tiling).fit

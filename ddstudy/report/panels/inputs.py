"""What a fit is given: input tensors and tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ddstudy.report import images
from ddstudy.report.panels.base import Panel, Picture, Shown

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView


class NoisePreview(Panel):
    """Input tensors as images (thesis Figs. 3.1 and 3.3)."""

    kind: Literal["noise"]
    x: Literal["noise", "feature_size"] = Field(
        "noise", description="what differs: the kind of noise, or the feature size of 'simplex'"
    )

    def _of_study(self, view: StudyView) -> Shown:
        kinds = self.x == "noise"
        if not view.spec.values_of("noise"):
            return Shown("Input tensors.", missing="This takes a prior whose input is noise.", never=True)
        if "target shape" not in view.facts:
            return Shown("Input tensors.", missing="Filled by a study that tells the size of its target.")
        shown = images.noise_previews(view) if kinds else images.feature_sizes(view)
        _, rows, columns = next(iter(shown.values())).shape
        what = "Kinds of noise, from one stream" if kinds else "Simplex noise of growing feature size"
        sentence = f"{what}: one channel at the study's largest input size, {rows} x {columns}."
        low, high = view.spec.noise.range
        pictures = []
        for name, array in shown.items():
            caption = str(name) if kinds else f"feature size {name:g}"
            pictures.append(Picture(((images.drawn((array - low) / (high - low)), f"noise: {caption}"),), caption))
        return Shown(sentence, pictures=[pictures])


class Tilings(Panel):
    """The target in one piece and in tiles (thesis Fig. 3.4)."""

    kind: Literal["tilings"]

    def _of_study(self, view: StudyView) -> Shown:
        sentence = f"The target, {view.facts['target']}, in the tiles that are fitted as one batch."
        if not view.spec.values_of("tiling"):
            return Shown(sentence, missing="This takes a prior that is fitted in tiles.", never=True)
        file = next((files["target.png"] for files in view.images.values() if "target.png" in files), None)
        target = None if file is None else images.read_grey(file)
        if target is None:
            return Shown(sentence, missing="Filled by the first trial whose images are kept (images = true).")
        cut = images.tilings(view, target).items()
        pictures = [Picture(((images.drawn(array), f"target in {tiling} tiles"),), tiling) for tiling, array in cut]
        return Shown(sentence, pictures=[pictures])

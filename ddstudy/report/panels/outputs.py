"""Images that were reconstructed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ddstudy.report import images, tables
from ddstudy.report.panels.base import Filtered, Picture, Shown, Table
from ddstudy.spec.axes import TILINGS

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView


class Outputs(Filtered):
    """Outputs of one setting and their error maps, per pair (thesis Fig. 4.1)."""

    wide: ClassVar[bool] = True
    kind: Literal["outputs"]

    def _of_study(self, view: StudyView) -> Shown:
        sentence = "Output of the ensemble and its absolute error (black 0 to bright 0.2) for each pair, one setting."
        rows = tables.gallery(self.filter(view.trials))
        every: list[Any] = list(rows.itertuples())
        kept = [row for row in every if "output.png" in view.images.get(row.number, {})]
        uris = {
            (row.noise, row.tiling, name): images.picture(view.images[row.number][f"{name}.png"])
            for row in kept
            for name in ("output", "error")
        }
        if not any(uris.values()):
            wanted = "Filled by measured trials whose images were kept (images = true in the study file)"
            return Shown(sentence, missing=f"{wanted} and are still in the folder of images.")
        one = kept[0]
        sentence = (
            f"Output of the ensemble and its absolute error (black 0 to bright 0.2) for each pair at k = {one.k}, "
            f"s = {one.s}, l = {one.l}, {one.iterations} iterations."
        )
        by_pair = {(row.noise, row.tiling): row for row in kept}
        tilings = [tiling for tiling in TILINGS if any(pair[1] == tiling for pair in by_pair)]

        def picture(noise: str, tiling: str) -> Picture:
            row = by_pair.get((noise, tiling))
            score = "not measured" if row is None else f"{row.psnr:.2f} dB" + ", unstable" * (not row.stable)
            names = {"output": "output", "error": "absolute error"}
            faces = [
                (uris.get((noise, tiling, name)) or "", f"{word}: {noise}, {tiling}") for name, word in names.items()
            ]
            return Picture(tuple(faces), f"{noise}, {tiling}: {score}")

        noises = dict.fromkeys(row.noise for row in kept)
        pictures = [[picture(noise, tiling) for tiling in tilings] for noise in noises]
        columns = {axis: axis for axis in ("noise", "tiling")} | {
            "trial": "number",
            "PSNR (dB)": "psnr",
            "SSIM": "ssim",
        }
        return Shown(sentence, table=Table(rows, columns | {"VIF": "vif", "CV (%)": "cv_percent"}), pictures=pictures)

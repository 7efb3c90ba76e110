"""Images that were reconstructed."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, ClassVar, Literal

from ddstudy.report import images, tables
from ddstudy.report.panels.base import Faceted, Picture, Shown, Table, settings_of
from ddstudy.report.words import in_words, text_of

if TYPE_CHECKING:
    from ddstudy.store.study import StudyView


class Outputs(Faceted):
    """Outputs of one setting and their error maps, per group of trials (thesis Fig. 4.1)."""

    wide: ClassVar[bool] = True
    kind: Literal["outputs"]

    def _of_study(self, view: StudyView) -> Shown:
        facets, others = self.split(view)
        sentence = f"Output of the ensemble and its absolute error (black 0 to bright 0.2) for each {self.group}"
        rows = tables.gallery(self.filter(view.trials), facets, [*facets, *others])
        kept = {
            tuple(text_of(row[axis]) for axis in facets): row
            for row in rows.to_dict("records")
            if "output.png" in view.images.get(row["number"], {})
        }
        uris = {
            (place, name): images.picture(view.images[row["number"]][f"{name}.png"])
            for place, row in kept.items()
            for name in ("output", "error")
        }
        if not any(uris.values()):
            wanted = "Filled by measured trials whose images were kept (images = true in the study file)"
            return Shown(f"{sentence}, one setting.", missing=f"{wanted} and are still in the folder of images.")
        sentence += f" at {in_words(next(iter(kept.values())), others)}."

        def picture(place: tuple[str, ...]) -> Picture:
            row = kept.get(place)
            score = "not measured" if row is None else f"{row['psnr']:.2f} dB" + ", unstable" * (not row["stable"])
            names = {"output": "output", "error": "absolute error"}
            group = ", ".join(place)
            faces = [(uris.get((place, name)) or "", f"{word}: {group}") for name, word in names.items()]
            return Picture(tuple(faces), f"{group}: {score}")

        # the first of several facets has a row per value, the others stand side by side
        width = len(facets[1:] or facets)
        rights = {place[-width:] for place in kept}
        ordered = itertools.product(*([text_of(v) for v in tables.values_of(rows, axis)] for axis in facets[-width:]))
        across = [right for right in ordered if right in rights]
        down = dict.fromkeys(place[:-width] for place in kept)
        pictures = [[picture((*left, *right)) for right in across] for left in down]
        columns = {axis: axis for axis in facets} | {"trial": "number", "PSNR (dB)": "psnr", "SSIM": "ssim"}
        columns |= {"VIF": "vif", "CV (%)": "cv_percent"}
        return Shown(sentence, table=Table(settings_of(rows, facets), columns), pictures=pictures)

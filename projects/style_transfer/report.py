"""The files of an evaluation: tables of all pairs of styles, the grid, and every translation."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from PIL import Image

from projects.style_transfer.gallery import Gallery
from projects.style_transfer.metrics import Judgement


@dataclass(frozen=True)
class Report:
    """Scores held-out crops and translates a work of every style."""

    judgement: Judgement
    gallery: Gallery

    def __call__(self, folder: Path) -> dict[str, float]:
        """Fill the folder and return metrics, named as in training.

        ::

            inference/A_to_B.jpg   the first held-out picture of A in the style B
            grid.png               sources in rows, targets in columns, reconstructions on the diagonal
            pairs.csv              the scores of every pair of two styles, of the flow and of each baseline
            methods.csv            their means over all pairs
            methods.png            the first held-out pictures, translated by the flow and by each baseline
            metrics.json           the returned metrics
        """
        folder.mkdir(parents=True, exist_ok=True)
        pairs = self.judgement.pairs()
        pd.DataFrame([asdict(pair) for pair in pairs]).to_csv(folder / "pairs.csv", index=False)
        methods = pd.DataFrame.from_dict(self.judgement.methods(pairs), orient="index").rename_axis("method")
        methods.to_csv(folder / "methods.csv")
        self.gallery.write(folder)
        Image.fromarray(self.gallery.methods(self.judgement.baselines)).save(folder / "methods.png")
        metrics = self.judgement.summary(pairs)
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        return metrics

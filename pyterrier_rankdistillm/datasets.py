"""``pt.get_dataset("rankdistillm:...")``."""

from __future__ import annotations

from collections.abc import Iterable

import pyterrier as pt

PUBLISHED = ("rankzephyr", "set-encoder", "monoelectra", "colbert")
"""The published runs. They are defined in ``runs/published.py``, which is imported when one is requested."""


class RankDistillmProvider(pt.datasets.DatasetProvider):
    """Gives PyTerrier the datasets of this package (registered as the entry point ``rankdistillm``)."""

    def get_dataset(self, name: str) -> pt.datasets.Dataset:
        """The dataset of that name.

        Raises:
            KeyError: There is no such dataset.
        """
        if name == "demo":
            from .demo import DemoDataset  # PyTerrier imports this file whenever any dataset is asked for

            return DemoDataset()
        if name in PUBLISHED:
            from .runs import PublishedDataset

            return PublishedDataset(name)
        raise KeyError(f"rankdistillm:{name} is unknown; there are: {', '.join(self.list_dataset_names())}.")

    def list_dataset_names(self) -> Iterable[str]:
        """The names, without the provider's prefix."""
        return ["demo", *PUBLISHED]

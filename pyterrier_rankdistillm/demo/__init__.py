"""A small test collection and a small checkpoint that ship with the package, so that all of it runs offline."""

from .dataset import DemoDataset

__all__ = ["DemoDataset"]

"""Optimizers that touch only the rows of an embedding table that a batch has read."""

from tfrec.training.sparse.adagrad import RowwiseAdagrad, SparseAdagrad
from tfrec.training.sparse.adam import LazyAdam
from tfrec.training.sparse.rows import Merged, TouchedRows, merge_rows, merged_slices

__all__ = ["LazyAdam", "Merged", "RowwiseAdagrad", "SparseAdagrad", "TouchedRows", "merge_rows", "merged_slices"]

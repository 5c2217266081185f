"""Optimizers that touch only the rows of an embedding table that a batch has read."""

from tfrec.training.sparse.adagrad import RowwiseAdagrad, SparseAdagrad
from tfrec.training.sparse.adam import LazyAdam
from tfrec.training.sparse.rows import Distinct, Merged, TouchedRows, distinct_rows, merge_rows, merged_slices

__all__ = [
    "Distinct",
    "LazyAdam",
    "Merged",
    "RowwiseAdagrad",
    "SparseAdagrad",
    "TouchedRows",
    "distinct_rows",
    "merge_rows",
    "merged_slices",
]

"""CDNOW purchases → one row a customer: what is known after 39 weeks, and what was spent in the next 39.

Source: Fader & Hardie, CDNOW_master.txt of the PyPI package Lifetimes 0.11.3; as cdnow/ in a folder of TFREC_DATA.
Imports no TensorFlow, so that both sides of the comparison can read it.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

CUT = np.datetime64("1997-10-01")
FOLDS = 5
Columns = dict[str, np.ndarray]


def purchases() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Customer index, day, CDs and dollars of every purchase, by customer and time."""
    folders = os.environ.get("TFREC_DATA", "").split(os.pathsep)
    found = [path for folder in folders if (path := Path(folder) / "cdnow" / "CDNOW_master.txt").exists()]
    if not found:
        raise SystemExit("cdnow/CDNOW_master.txt must be in a folder of TFREC_DATA")
    rows = [line.split() for line in found[0].read_text(encoding="utf-8").splitlines() if line.split()]
    rows = [row for row in rows if row[0].isdigit()]
    day = np.array([f"{d[:4]}-{d[4:6]}-{d[6:]}" for _, d, _, _ in rows], "datetime64[D]")
    customer = np.unique(np.array([row[0] for row in rows]), return_inverse=True)[1]
    order = np.lexsort((day, customer))
    cds, dollars = (np.array([float(row[i]) for row in rows])[order] for i in (2, 3))
    return customer[order], day[order], cds, dollars


def customers() -> tuple[Columns, np.ndarray]:
    """Features float64 [C] by name, and dollars of the second period float64 [C]."""
    customer, day, cds, dollars = purchases()
    before = day < CUT
    count = int(customer.max()) + 1
    target = np.bincount(customer[~before], dollars[~before], count)
    who, when, cds, dollars = customer[before], day[before], cds[before], dollars[before]
    age = (CUT - when).astype(float)
    orders = np.bincount(who, minlength=count).astype(float)
    first, last = np.full(count, 0.0), np.full(count, np.inf)
    np.maximum.at(first, who, age)
    np.minimum.at(last, who, age)
    biggest = np.zeros(count)
    np.maximum.at(biggest, who, dollars)
    spent = np.bincount(who, dollars, count)
    newest = np.zeros(count)
    newest[who] = dollars  # purchases are in order of time: the last assignment stays
    columns = {
        "orders": orders,
        "spent": spent,
        "discs": np.bincount(who, cds, count),
        "mean_spent": spent / orders,
        "biggest": biggest,
        "newest": newest,
        "recency": last,
        "tenure": first,
        "active_share": (first - last) / first,
    }
    for weeks in (4, 13, 26):
        recent = age <= 7 * weeks
        columns[f"orders_{weeks}w"] = np.bincount(who[recent], minlength=count).astype(float)
        columns[f"spent_{weeks}w"] = np.bincount(who[recent], dollars[recent], count)
    return columns, target


def parts(rows: int, fold: int) -> np.ndarray:
    """0 train, 1 valid, 2 test of every customer: each is test in one of the folds and valid in another."""
    place = np.random.default_rng(0).permutation(rows) % FOLDS
    return np.where(place == fold, 2, np.where(place == (fold + 1) % FOLDS, 1, 0))

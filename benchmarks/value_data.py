"""CDNOW purchases → one row a customer: what is known after some weeks, and what was spent in those that follow.

Source: Fader & Hardie, CDNOW_master.txt of the PyPI package Lifetimes 0.11.3; as cdnow/ in a folder of TFREC_DATA.
Imports no TensorFlow, so that both sides of the comparison can read it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Customers came in the first 12 weeks of 1997; purchases end on 30 June 1998. Settings are chosen on "early", which
# ends where the future of "full" begins.
WINDOWS = {"early": ("1997-07-02", "1997-10-01"), "full": ("1997-10-01", "1998-07-01")}
FOLDS = 5
Columns = dict[str, np.ndarray]


class Purchases(NamedTuple):
    """Purchases by customer and time.

    Args:
        who: customer, int [P].
        day: datetime64[D] [P].
        discs: CDs, float64 [P].
        dollars: float64 [P].
    """

    who: np.ndarray
    day: np.ndarray
    discs: np.ndarray
    dollars: np.ndarray

    def where(self, rows: np.ndarray) -> Purchases:
        return Purchases(*(column[rows] for column in self))


def purchases() -> Purchases:
    folders = os.environ.get("TFREC_DATA", "").split(os.pathsep)
    found = [path for folder in folders if (path := Path(folder) / "cdnow" / "CDNOW_master.txt").exists()]
    if not found:
        raise SystemExit("cdnow/CDNOW_master.txt must be in a folder of TFREC_DATA")
    rows = [line.split() for line in found[0].read_text(encoding="utf-8").splitlines() if line.split()]
    rows = [row for row in rows if row[0].isdigit()]
    day = np.array([f"{d[:4]}-{d[4:6]}-{d[6:]}" for _, d, _, _ in rows], "datetime64[D]")
    customer = np.unique(np.array([row[0] for row in rows]), return_inverse=True)[1]
    order = np.lexsort((day, customer))
    discs, dollars = (np.array([float(row[i]) for row in rows])[order] for i in (2, 3))
    return Purchases(customer[order], day[order], discs, dollars)


def customers(window: str) -> tuple[Columns, np.ndarray]:
    """Features float64 [C] by name, and dollars of the days that follow float64 [C]."""
    bought = purchases()
    cut, end = (np.datetime64(day) for day in WINDOWS[window])
    count = int(bought.who.max()) + 1
    future = bought.where((bought.day >= cut) & (bought.day < end))
    past = bought.where(bought.day < cut)
    age = (cut - past.day).astype(float)
    columns = totals(past, count) | recent(past, age, count) | rhythm(past, age, count)
    return columns, np.bincount(future.who, future.dollars, count)


def totals(past: Purchases, count: int) -> Columns:
    """How often, how much, and what kind of purchases."""
    orders, spent = np.bincount(past.who, minlength=count).astype(float), np.bincount(past.who, past.dollars, count)
    discs, squares = (np.bincount(past.who, x, count) for x in (past.discs, past.dollars**2))
    biggest, newest, oldest = (np.zeros(count) for _ in range(3))
    np.maximum.at(biggest, past.who, past.dollars)
    newest[past.who] = past.dollars  # purchases are in order of time: the last assignment stays
    oldest[past.who[::-1]] = past.dollars[::-1]
    mean = spent / orders
    return {
        "orders": orders,
        "spent": spent,
        "discs": discs,
        "mean_spent": mean,
        "spread": np.sqrt(np.maximum(squares / orders - mean**2, 0)),
        "biggest": biggest,
        "newest": newest,
        "oldest": oldest,
        "disc_price": spent / np.maximum(discs, 1),
    }


def recent(past: Purchases, age: np.ndarray, count: int) -> Columns:
    """Orders and dollars of the last weeks, and with weights that halve every so many days."""
    weights = {f"{weeks}w": (age <= 7 * weeks).astype(float) for weeks in (4, 13, 26)}
    weights |= {f"half_{days}d": 0.5 ** (age / days) for days in (28, 91)}
    orders = {f"orders_{name}": np.bincount(past.who, w, count) for name, w in weights.items()}
    return orders | {f"spent_{name}": np.bincount(past.who, w * past.dollars, count) for name, w in weights.items()}


def rhythm(past: Purchases, age: np.ndarray, count: int) -> Columns:
    """Days on which something was bought: the first, the last, and the gaps between them."""
    new = np.concatenate([[True], (np.diff(past.who) != 0) | (past.day[1:] != past.day[:-1])])
    who, age = past.who[new], age[new]
    days = np.bincount(who, minlength=count).astype(float)
    first, last = np.zeros(count), np.full(count, np.inf)
    np.maximum.at(first, who, age)
    np.minimum.at(last, who, age)
    gap = np.where(days > 1, (first - last) / np.maximum(days - 1, 1), first)  # of one day it is at least its age
    newest_gap = first.copy()
    same = np.flatnonzero(who[1:] == who[:-1])
    newest_gap[who[same]] = age[same] - age[same + 1]
    return {
        "days": days,
        "recency": last,
        "tenure": first,
        "active_share": (first - last) / first,
        "gap": gap,
        "newest_gap": newest_gap,
        "overdue": last / np.maximum(gap, 1),
    }


def parts(rows: int, fold: int) -> np.ndarray:
    """0 train, 1 valid, 2 test of every customer: each is test in one of the folds and valid in another."""
    place = np.random.default_rng(0).permutation(rows) % FOLDS
    return np.where(place == fold, 2, np.where(place == (fold + 1) % FOLDS, 1, 0))

"""Purchases → one row a customer: what is known on a day, and what was spent in the weeks that follow.

Sources, in a folder of TFREC_DATA: cdnow/CDNOW_master.txt, of Fader & Hardie, from the PyPI package Lifetimes 0.11.3;
online-retail/transactions.parquet, UCI's "Online Retail II" (in pounds, called dollars here) until 8 June 2011.
Imports no TensorFlow, so that both sides of the comparison can read it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

# Settings are chosen on "early", which ends where the future of "full" begins. CDNOW's customers all came in the first
# 12 weeks of 1997.
WINDOWS = {
    "cdnow": {"early": ("1997-07-02", "1997-10-01"), "full": ("1997-10-01", "1998-07-01")},
    "online-retail": {"early": ("2010-06-01", "2010-12-01"), "full": ("2010-12-01", "2011-06-09")},
}
FOLDS = 5
Columns = dict[str, np.ndarray]


class Purchases(NamedTuple):
    """Purchases by customer and time.

    Args:
        who: customer, int [P].
        day: datetime64[D] [P].
        units: how many things, float64 [P].
        dollars: float64 [P].
    """

    who: np.ndarray
    day: np.ndarray
    units: np.ndarray
    dollars: np.ndarray

    def where(self, rows: np.ndarray) -> Purchases:
        return Purchases(*(column[rows] for column in self))


def find(name: str) -> Path:
    folders = os.environ.get("TFREC_DATA", "").split(os.pathsep)
    found = [path for folder in folders if (path := Path(folder) / name).exists()]
    if not found:
        raise SystemExit(f"{name} must be in a folder of TFREC_DATA")
    return found[0]


def cdnow() -> Purchases:
    rows = [line.split() for line in find("cdnow/CDNOW_master.txt").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row and row[0].isdigit()]
    day = np.array([f"{d[:4]}-{d[4:6]}-{d[6:]}" for _, d, _, _ in rows], "datetime64[D]")
    who, units, dollars = (np.array([row[i] for row in rows], kind) for i, kind in ((0, int), (2, float), (3, float)))
    return Purchases(who, day, units, dollars).where(np.lexsort((day, who)))


def online_retail() -> Purchases:
    """A purchase is what one customer has bought in one minute; what came back is left out."""
    names = ["CustomerID", "InvoiceDate", "Quantity", "UnitPrice"]
    sold = [("CustomerID", ">", 0), ("Quantity", ">", 0), ("UnitPrice", ">", 0)]
    table = pq.read_table(find("online-retail/transactions.parquet"), columns=names, filters=sold)
    who, time, units, price = (table[name].to_numpy() for name in names)
    order = np.lexsort((time, who))
    who, time, units, dollars = (column[order] for column in (who, time, units, units * price.astype(float)))
    new = np.flatnonzero(np.concatenate([[True], (np.diff(who) != 0) | (time[1:] != time[:-1])]))
    units, dollars = (np.add.reduceat(column.astype(float), new) for column in (units, dollars))
    return Purchases(who[new], time[new].astype("datetime64[D]"), units, dollars)


def customers(data: str, window: str) -> tuple[Columns, np.ndarray]:
    """Of who bought before the cut: features float64 [C] by name, and dollars of the days that follow float64 [C]."""
    bought = {"cdnow": cdnow, "online-retail": online_retail}[data]()
    cut, end = (np.datetime64(day) for day in WINDOWS[data][window])
    future = bought.where((bought.day >= cut) & (bought.day < end))
    past = bought.where(bought.day < cut)
    age = (cut - past.day).astype(float)
    spent = np.bincount(future.who, future.dollars, bought.who.max() + 1)
    known, who = np.unique(past.who, return_inverse=True)
    past, count = past._replace(who=who), len(known)
    return totals(past, count) | recent(past, age, count) | rhythm(past, age, count), spent[known]


def totals(past: Purchases, count: int) -> Columns:
    """How often, how much, and what kind of purchases."""
    orders, spent = np.bincount(past.who, minlength=count).astype(float), np.bincount(past.who, past.dollars, count)
    units, squares = (np.bincount(past.who, x, count) for x in (past.units, past.dollars**2))
    biggest, newest, oldest = (np.zeros(count) for _ in range(3))
    np.maximum.at(biggest, past.who, past.dollars)
    newest[past.who] = past.dollars  # purchases are in order of time: the last assignment stays
    oldest[past.who[::-1]] = past.dollars[::-1]
    mean = spent / orders
    return {
        "orders": orders,
        "spent": spent,
        "units": units,
        "mean_spent": mean,
        "spread": np.sqrt(np.maximum(squares / orders - mean**2, 0)),
        "biggest": biggest,
        "newest": newest,
        "oldest": oldest,
        "unit_price": spent / np.maximum(units, 1),
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

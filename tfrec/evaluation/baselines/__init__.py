"""Models that cost seconds, which a network has to beat."""

from __future__ import annotations

from tfrec.evaluation.baselines.blend import blend
from tfrec.evaluation.baselines.compare import table
from tfrec.evaluation.baselines.ease import EASE
from tfrec.evaluation.baselines.knn import ItemKNN
from tfrec.evaluation.baselines.popularity import PersonalFrequency, Popularity
from tfrec.evaluation.baselines.text import LastItemText, TextProfile

__all__ = ["EASE", "ItemKNN", "LastItemText", "PersonalFrequency", "Popularity", "TextProfile", "blend", "table"]

"""The confusion matrix and the most frequent mistakes."""

from __future__ import annotations

from torch import Tensor

from gdfq.data import class_names
from gdfq.report.contents import ConfusedPair, Confusion

MATRIX_CLASSES = 100  # up to so many, every count is kept
PAIRS = 30


def describe(data: str, teacher: Tensor, student: Tensor) -> Confusion:
    """Describe teacher's and student's counts of :func:`gdfq.data.confusion` for a report."""
    classes = len(student)
    names = class_names(data, classes)
    mistakes = student.clone().fill_diagonal_(0).flatten()
    # Stable: of equally frequent ones the first classes come first.
    order = mistakes.argsort(descending=True, stable=True)[:PAIRS].tolist()
    pairs = [
        ConfusedPair(names[i], names[j], int(teacher[i, j]), int(student[i, j]))
        for i, j in (divmod(place, classes) for place in order)
        if i != j and student[i, j]
    ]
    small = classes <= MATRIX_CLASSES
    return Confusion(
        list(names),
        teacher.tolist() if small else [],
        student.tolist() if small else [],
        pairs,
    )

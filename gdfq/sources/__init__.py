"""Loading of teachers from model packages, the user's code, or this package."""

from gdfq.sources.preprocessing import DATA_SETS, Preprocessing
from gdfq.sources.registries import InMemory, find_source
from gdfq.sources.teacher import LoadedTeacher, expected_image_size, load_teacher

__all__ = [
    "DATA_SETS",
    "InMemory",
    "LoadedTeacher",
    "Preprocessing",
    "expected_image_size",
    "find_source",
    "load_teacher",
]

"""What later papers added to the loop: one module each, all off by default."""

from gdfq.training.parts.settings import Objective, Parts, Spread, StatisticsOf

__all__ = ["Objective", "Parts", "Spread", "StatisticsOf"]

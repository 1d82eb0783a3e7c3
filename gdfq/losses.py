"""The losses of the method (Xu et al., ECCV 2020, equations 2 to 7)."""

from gdfq.ops import bns_loss, kd_ce_loss

__all__ = ["bns_loss", "kd_ce_loss"]

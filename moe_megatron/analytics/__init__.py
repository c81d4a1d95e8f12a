"""What routers do, measured on any model in memory: no training run is needed.

`RouterMonitor` counts while a model is used; `RouterAnalyzer` runs a model on chosen text and asks
which experts serve what. Both watch through hooks and tensor methods: nothing in here imports
torch, and the maths (`information`, `decisions`) is numpy.
"""

from moe_megatron.analytics.analyzer import RouterAnalyzer
from moe_megatron.analytics.decisions import BatchAnalysis
from moe_megatron.analytics.monitor import RouterMonitor, RouterStats
from moe_megatron.analytics.specialization import Specialization

__all__ = ["BatchAnalysis", "RouterAnalyzer", "RouterMonitor", "RouterStats", "Specialization"]

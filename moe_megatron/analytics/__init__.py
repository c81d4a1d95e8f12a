"""Measures what the routers of any model in memory do; no training run is needed.

`RouterMonitor` counts while a model is used; `RouterAnalyzer` runs a model on given text and finds
out which experts serve what. Both use hooks and methods of tensors: nothing here imports torch, and
the mathematics (`information`, `decisions`) uses numpy.
"""

from moe_megatron.analytics.analyzer import RouterAnalyzer
from moe_megatron.analytics.decisions import BatchAnalysis
from moe_megatron.analytics.monitor import RouterMonitor, RouterStats
from moe_megatron.analytics.specialization import Specialization

__all__ = ["BatchAnalysis", "RouterAnalyzer", "RouterMonitor", "RouterStats", "Specialization"]

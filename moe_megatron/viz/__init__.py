"""Pictures of a run and of models: figures, films and the dashboard from Python.

`TrainingVisualizer` draws a training and `ArchitectureVisualizer` a model with matplotlib, in the
style of `drawing`. `MoEDashboard` shows a run or a model in a browser, and writes it to one HTML
file.
"""

from moe_megatron.viz.architecture_visualizer import ArchitectureVisualizer
from moe_megatron.viz.moe_dashboard import MoEDashboard
from moe_megatron.viz.training_visualizer import TrainingVisualizer

__all__ = ["ArchitectureVisualizer", "MoEDashboard", "TrainingVisualizer"]

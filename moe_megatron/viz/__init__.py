"""Pictures of a run and of models: reports, figures and films.

`report` writes one HTML file that needs neither network nor server. `TrainingVisualizer` draws a
training with matplotlib, in the style of `drawing`. `MoEDashboard` shows a run or a model in a
browser.
"""

from moe_megatron.viz.moe_dashboard import MoEDashboard
from moe_megatron.viz.training_visualizer import TrainingVisualizer

__all__ = ["MoEDashboard", "TrainingVisualizer"]

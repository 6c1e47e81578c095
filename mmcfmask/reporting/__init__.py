"""Pictures and tables: everything takes plain tensors and dicts and touches no global state of matplotlib."""

from .class_change import class_change_figure, class_changes
from .curves import wise_ft_curve
from .panels import Variant, counterfactual_panel, hide_patches, variants_panel
from .plots import id_ood_points, id_ood_scatter
from .reliability import merge_bins, reliability_diagram
from .style import save_figure
from .tables import results_table, summarize, to_json, to_markdown

__all__ = [
    'Variant',
    'class_change_figure',
    'class_changes',
    'counterfactual_panel',
    'hide_patches',
    'id_ood_points',
    'id_ood_scatter',
    'merge_bins',
    'reliability_diagram',
    'results_table',
    'save_figure',
    'summarize',
    'to_json',
    'to_markdown',
    'variants_panel',
    'wise_ft_curve',
]

"""Tables, figures and the report on tested runs.

Functions take plain tensors and dicts, and leave the global state of matplotlib alone.
"""

from .class_change import class_change_figure, class_changes
from .curves import wise_ft_curve
from .groups import group_scatter
from .map_curves import map_curves
from .page import make_report
from .panels import Variant, counterfactual_panel, grey_out_patches, variants_panel
from .plots import id_ood_points, id_ood_scatter
from .reliability import merge_bins, reliability_diagram
from .set_reports import all_complete, show_set_reports
from .style import save_figure
from .summary import summarize
from .tables import results_table, summary_table, to_json, to_markdown

__all__ = [
    'Variant',
    'all_complete',
    'class_change_figure',
    'class_changes',
    'counterfactual_panel',
    'group_scatter',
    'grey_out_patches',
    'id_ood_points',
    'id_ood_scatter',
    'make_report',
    'map_curves',
    'merge_bins',
    'reliability_diagram',
    'results_table',
    'save_figure',
    'show_set_reports',
    'summarize',
    'summary_table',
    'to_json',
    'to_markdown',
    'variants_panel',
    'wise_ft_curve',
]

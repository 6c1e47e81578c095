"""The report as one HTML page that needs neither a server nor a network."""

from .render import EXAMPLES, render_page

__all__ = ['EXAMPLES', 'render_page']

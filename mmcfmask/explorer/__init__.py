"""The explorer: a local page on which one makes counterfactual images and sees what models say to them.

:mod:`.page` alone imports Gradio, so everything else works, and is tested, without it.
"""

from setuptools import setup

setup()  # everything is in pyproject.toml; this file is for tools that call or look for setup.py

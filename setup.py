from setuptools import setup

setup()  # pyproject.toml says everything; this file lets old tools call `python setup.py`

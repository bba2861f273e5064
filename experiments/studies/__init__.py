"""Questions and their answers: `python -m experiments.studies.NAME` writes results/NAME.json, .png.

An experiment is one run and its score; a study compares runs, and its result is a picture.
"""

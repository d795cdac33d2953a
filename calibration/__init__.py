"""Where profiles come from: published numbers, recorded ratings, and (on a GPU) measurement.

Importing this package is cheap. Of :mod:`argus_sim` only four modules of ``live/`` import anything here: real
workers run the very pipelines that were calibrated. Otherwise the arrow points the other way.
"""

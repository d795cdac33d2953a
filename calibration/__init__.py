"""Where profiles come from: published numbers, recorded ratings, and (on a GPU) measurement.

Importing this package is cheap. Nothing here is imported by :mod:`argus_sim`; the arrow points the other way.
"""

"""argus-sim: find out, before buying a single GPU, how a text-to-image service will behave."""

from importlib.metadata import version

__version__ = version("argus-sim")

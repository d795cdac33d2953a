"""How alike two texts are: what an approximate cache is asked.

embeddings.py  a vector for each text, read from a file or hashed
scale.py       from cosines of an embedding to the similarity that thresholds are written for
scales/        the scales that ship, fitted to a recorded log
"""

from argus_sim.similarity.embeddings import HASHED, Embeddings, hashed
from argus_sim.similarity.scale import SAME, SimilarityScale

__all__ = ["HASHED", "SAME", "Embeddings", "SimilarityScale", "hashed"]

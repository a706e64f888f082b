"""Nearest neighbours among the real clips: does a video show what its caption names, and was it copied?"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

CHUNK = 256  # rows of each side per matrix product: bounds the memory of float copies


def nearest(
    queries: np.ndarray | Tensor, gallery: np.ndarray | Tensor, *, leave_one_out: bool = False
) -> tuple[Tensor, Tensor]:
    """Each query's nearest item by Euclidean distance.

    Args:
        queries: (m, ...): features (m, d), or whole uint8 videos (m, t, h, w, 3), flattened here.
        gallery: (n, ...), items of the same shape.
        leave_one_out: Query k is gallery item k, which does not count.

    Returns:
        Index (m,) into the gallery, and squared distance, float32 (m,).

    Raises:
        ValueError: Items of different shapes.
    """
    if queries.shape[1:] != gallery.shape[1:]:
        raise ValueError(f"items of different shapes: {tuple(queries.shape[1:])} and {tuple(gallery.shape[1:])}")
    queries, gallery = torch.as_tensor(queries).flatten(1), torch.as_tensor(gallery).flatten(1)
    # Subtracting a common point changes no distance, and keeps float32 sums of many pixels small.
    centre = gallery[:CHUNK].float().mean(dim=0)
    best, where = torch.full((len(queries),), torch.inf), torch.zeros(len(queries), dtype=torch.long)
    for i in range(0, len(queries), CHUNK):
        q = queries[i : i + CHUNK].float() - centre
        for j in range(0, len(gallery), CHUNK):
            g = gallery[j : j + CHUNK].float() - centre
            distances = q.square().sum(1, keepdim=True) + g.square().sum(1) - 2 * q @ g.T
            if leave_one_out and i == j:
                distances.fill_diagonal_(torch.inf)
            values, columns = distances.min(dim=1)
            closer = values < best[i : i + CHUNK]
            best[i : i + CHUNK][closer], where[i : i + CHUNK][closer] = values[closer], columns[closer] + j
    for i in range(0, len(queries), CHUNK):  # without the rounding of the sums
        rows = slice(i, i + CHUNK)
        best[rows] = (queries[rows].float() - gallery[where[rows]].float()).square().sum(1)
    return where, best


def share_of_hits(where: Tensor, query_captions: Sequence[str], gallery_captions: Sequence[str]) -> float:
    """Share in [0, 1] of m videos whose nearest of n clips, ``where`` (m,), has their caption; chance is about 1/n."""
    hits = [gallery_captions[j] == caption for j, caption in zip(where.tolist(), query_captions, strict=True)]
    return sum(hits) / len(hits)

"""Does a generated video look like the clip its caption names? Nearest neighbours among the real clips."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

CHUNK = 256  # rows of each side per matrix product: bounds the memory of float copies


def squared_distances(queries: np.ndarray | Tensor, gallery: np.ndarray | Tensor) -> Tensor:
    """Squared Euclidean distances between rows.

    Args:
        queries: (m, ...): features (m, d), or whole uint8 videos (m, t, h, w, 3), flattened here.
        gallery: (n, ...), items of the same shape.

    Returns:
        float32 (m, n).

    Raises:
        ValueError: Items of different shapes.
    """
    if queries.shape[1:] != gallery.shape[1:]:
        shapes = f"{tuple(queries.shape[1:])} and {tuple(gallery.shape[1:])}"
        raise ValueError(f"items of different shapes: {shapes}")
    queries, gallery = torch.as_tensor(queries).flatten(1), torch.as_tensor(gallery).flatten(1)
    # Subtracting a common point changes no distance, and keeps float32 sums of many pixels small.
    centre = gallery[:CHUNK].float().mean(dim=0)
    distances = torch.empty(len(queries), len(gallery))
    for i in range(0, len(queries), CHUNK):
        q = queries[i : i + CHUNK].float() - centre
        for j in range(0, len(gallery), CHUNK):
            g = gallery[j : j + CHUNK].float() - centre
            squares = q.square().sum(1, keepdim=True) + g.square().sum(1)
            distances[i : i + CHUNK, j : j + CHUNK] = squares - 2 * q @ g.T
    return distances.clamp_(min=0)


def nearest_share(
    queries: np.ndarray | Tensor,
    gallery: np.ndarray | Tensor,
    query_captions: Sequence[str],
    gallery_captions: Sequence[str],
) -> float:
    """Share of generated videos whose nearest real clip has the caption they were generated from.

    Args:
        queries: Features (m, d) or uint8 videos (m, t, h, w, 3) of what was generated.
        gallery: The same of the real clips, (n, ...).
        query_captions: m captions.
        gallery_captions: n captions.

    Returns:
        Share in [0, 1]; chance is about 1/n.
    """
    nearest = squared_distances(queries, gallery).argmin(dim=1).tolist()
    hits = [gallery_captions[j] == caption for j, caption in zip(nearest, query_captions, strict=True)]
    return sum(hits) / len(hits)

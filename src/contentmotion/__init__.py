"""Content-motion latent diffusion: efficient text-to-video generation, training and evaluation.

Public names are loaded on first use, so that ``import contentmotion`` costs nothing.
"""

from importlib import import_module

__version__ = "0.1.0"
_PUBLIC = {
    "ContentMotionAutoencoder": "contentmotion.models.autoencoder",
    "ContentMotionPipeline": "contentmotion.pipelines.content_motion",
    "ContentMotionPipelineOutput": "contentmotion.pipelines.content_motion",
    "MotionDiT": "contentmotion.models.motion_dit",
    "load_pipeline": "contentmotion.pipelines.loading",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

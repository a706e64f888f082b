"""The stock diffusers image pipeline that makes content frames: built of our components, chosen by its arguments."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, DiffusionPipeline
from PIL import Image
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from contentmotion.diffusion import Interval, within
from contentmotion.loading import quiet

CLASS = "class"  # in the settings of a stock pipeline that model_index.json has


def stock_settings(kind: type[DiffusionPipeline], values: Mapping[str, Any]) -> dict[str, Any]:
    """What of a stock pipeline is not in its components: its class and the plain arguments of its constructor, of its
    config or its ``model_index.json``."""
    _, plain = kind._get_signature_keys(kind)
    return {CLASS: kind.__name__} | {name: values[name] for name in plain if name in values}


def stock_class(name: Any) -> type[DiffusionPipeline] | None:
    """The pipeline of diffusers that is called so; None where there is none."""
    found = getattr(diffusers, str(name), None)
    return found if inspect.isclass(found) and issubclass(found, DiffusionPipeline) else None


def make_stock(
    default: type[DiffusionPipeline], settings: Mapping[str, Any] | None, components: Mapping[str, Any]
) -> DiffusionPipeline:
    """A stock pipeline of those of the components that it knows, with such settings as ``stock_settings`` gives; of the
    default class where these name none.

    Raises:
        ValueError: The settings' class is none of diffusers' pipelines.
    """
    settings = dict(settings or {})
    name = settings.pop(CLASS, default.__name__)
    cls: Any = stock_class(name)
    if cls is None:
        raise ValueError(f"{name} is no pipeline of diffusers {diffusers.__version__}")
    modules, plain = cls._get_signature_keys(cls)
    if "requires_safety_checker" in plain:
        settings.setdefault("requires_safety_checker", False)
    # The scheduler comes afterwards: constructors correct an old one in place, under a model that was trained with it.
    parts = {module: components.get(module) for module in modules}
    with quiet():
        pipe = cls(**parts | {"scheduler": None} | settings)
    pipe.register_modules(scheduler=parts["scheduler"])
    return pipe


def arguments_of(pipe: DiffusionPipeline) -> set[str]:
    """Names of what a pipeline's call takes."""
    parameters = inspect.signature(pipe.__call__).parameters
    return {name for name, given in parameters.items() if given.kind != given.VAR_KEYWORD}


def pipeline_for(pipe: DiffusionPipeline, names: Iterable[str]) -> DiffusionPipeline:
    """The pipeline that takes these arguments: the one given, or with its components the image-to-image or inpainting
    pipeline of the same family, which are diffusers' own choice.

    Raises:
        TypeError: None of them takes them all.
    """
    names, known = set(names), arguments_of(pipe)
    if names <= known:
        return pipe
    for auto in (AutoPipelineForImage2Image, *[AutoPipelineForInpainting] * ("mask_image" in names)):
        scheduler = pipe.scheduler
        pipe.register_modules(scheduler=None)  # see make_stock
        try:
            with quiet():
                other: Any = auto.from_pipe(pipe)
        except ValueError:  # no such pipeline in this family
            continue
        finally:
            pipe.register_modules(scheduler=scheduler)
        other.register_modules(scheduler=scheduler)
        known |= arguments_of(other)
        if names <= arguments_of(other):
            return other
    unknown = sorted(names - known)
    if not unknown:
        raise TypeError(f"{', '.join(sorted(names))}: no image pipeline of this family takes these together")
    close = difflib.get_close_matches(unknown[0], sorted(known), n=1)
    raise TypeError(
        f"{', '.join(unknown)}: neither ContentMotionPipeline nor its image pipeline, {type(pipe).__name__}, takes "
        f"such an argument{f' (did you mean {close[0]}?)' if close else ''}"
    )


def takes(pipe: DiffusionPipeline | None, names: Iterable[str]) -> bool:
    """Whether there is a pipeline that ``pipeline_for`` finds."""
    try:
        return pipe is not None and pipeline_for(pipe, names) is not None
    except TypeError:
        return False


@contextmanager
def guided_between(network: nn.Module, interval: Interval | None, size: int) -> Iterator[None]:
    """Leaves guidance out of a stock pipeline's steps at times outside an interval.

    It asks its network about null conditions and prompts in one call, and guides by the difference. Here the network
    is called for the prompts alone, and says the same of both: the difference is none, and the step costs one pass.
    ``size`` is how many pictures it makes; without an interval every step is guided.
    """
    if interval is None:
        yield
        return
    alone = False

    def of_prompts(x: Any) -> Any:
        return x[size:] if isinstance(x, Tensor) and x.dim() > 0 and len(x) == 2 * size else x

    def before(network: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        nonlocal alone
        noisy = args[0] if args else kwargs["hidden_states"]
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        time = float(timestep.flatten()[0]) / network.config.get("timestep_scale", 1.0)
        alone = len(noisy) == 2 * size and not within(time, interval)
        return tree_map(of_prompts, (args, kwargs)) if alone else None

    def after(network: Any, args: tuple, output: Any) -> Any:
        return tree_map(lambda x: torch.cat([x, x]), output) if alone else None

    with network.register_forward_pre_hook(before, with_kwargs=True), network.register_forward_hook(after):
        yield


def resized(pipe: DiffusionPipeline, image: Any, height: int, width: int) -> Any:
    """Pictures as a pipeline without ``height`` and ``width`` takes them, which makes images of their size; arrays and
    tensors as they are."""
    if isinstance(image, list):
        return [resized(pipe, one, height, width) for one in image]
    if isinstance(image, Image.Image):
        return image if image.size == (width, height) else pipe.image_processor.resize(image, height, width)
    return image

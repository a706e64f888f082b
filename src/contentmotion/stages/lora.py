"""What of a network is trained: low-rank adapters (Hu et al. 2022, through PEFT), or parameters by their names."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from torch import nn

from contentmotion.config import LoraSettings
from contentmotion.saving import replacing_folder
from contentmotion.stages.stage import Stage

ADAPTER = "default"


def add_adapters(network: nn.Module, rank: int, alpha: float | None, target_modules: Sequence[str]) -> None:
    """Puts adapters, which start as nothing, beside layers of a network; they alone require a gradient from then on.

    Args:
        network: Changed in place; the names in its state dict change too.
        rank: Of the adapters.
        alpha: Their output is scaled by ``alpha / rank``; ``rank`` when None.
        target_modules: Ends of the names of the layers, linear or convolutions.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: No layer has such a name.
    """
    try:
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise ImportError('--lora.rank needs PEFT: pip install "contentmotion[lora]"') from error
    config = PeftConfig(
        r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=list(target_modules),
        init_lora_weights=True,
    )  # fmt: skip
    ends = tuple(f".{end}" for end in target_modules)
    if not any(f".{name}".endswith(ends) for name, _ in network.named_modules()):
        raise ValueError(f"no layer of the {type(network).__name__} is called {' or '.join(target_modules)}")
    inject_adapter_in_model(config, network, ADAPTER)


def adapt(stage: Stage, lora: LoraSettings) -> None:
    """Freezes a stage's network and puts adapters beside its layers, where a config asks for adapters."""
    if not lora.rank:
        return
    stage.network.requires_grad_(False)
    add_adapters(stage.network, lora.rank, lora.alpha, lora.target_modules or stage.lora_targets)


def merge_adapters(network: nn.Module) -> nn.Module:
    """A copy of a network with its adapters added to the weights beside them: the network's own class again."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged = copy.deepcopy(network)
    for name, module in list(merged.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            merged.set_submodule(name, module.get_base_layer())
    del merged.peft_config
    return merged


def save_adapters(stage: Stage, path: Path) -> None:
    """The adapters of a stage's network in diffusers' format, for ``load_lora_weights`` of any pipeline that has the
    network; the scheduler that they need beside them.
    """
    from peft import get_peft_model_state_dict

    layers: dict[str, torch.Tensor] = get_peft_model_state_dict(stage.network)
    if stage.network_name == "unet":
        layers = convert_state_dict_to_diffusers(layers)
    settings: Any = stage.network.peft_config[ADAPTER]  # type: ignore[index]
    stock: Any = getattr(stage, "stock", None) or StableDiffusionPipeline  # a video UNet's, too
    own = {"lora_layers": layers, "lora_adapter_metadata": settings.to_dict()}
    with replacing_folder(path) as folder:
        stock.save_lora_weights(folder, **{f"{stage.network_name}_{name}": value for name, value in own.items()})
        stage.scheduler.save_pretrained(folder)


def freeze_all_but(module: nn.Module, words: Sequence[str]) -> None:
    """Leaves to be trained only the parameters with one of the words in their names; all where there are none.

    Raises:
        ValueError: No parameter has such a name.
    """
    if not words:
        return
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and any(word in name for word in words))
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ValueError(f"trainable_modules: no parameter to train has {' or '.join(words)} in its name")

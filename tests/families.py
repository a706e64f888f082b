"""Tiny image pipelines of every family, made of stock classes of diffusers and transformers with random weights."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if not enable_thinking %}<think></think>{% endif %}"
    "{% endif %}"
)
PROMPTS = ["a moving square", "a crying cat and a rocket"]


def make_stable_diffusion_3() -> Any:
    """16 VAE channels with a shift; two CLIP encoders that project to 32 and 64, T5 of width 64."""
    import torch
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    from tiny import make_text

    torch.manual_seed(0)
    tokenizer, _ = make_text()
    tokenizer.model_max_length = 77

    def clip(width: int) -> Any:
        config = CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=2,
            projection_dim=width, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        return CLIPTextModelWithProjection(config)

    t5 = T5Config(vocab_size=200, d_model=64, d_ff=37, d_kv=8, num_layers=2, num_heads=2)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=64, caption_projection_dim=32, pooled_projection_dim=96,
        pos_embed_max_size=16,
    )  # fmt: skip
    parts = {"text_encoder": clip(32), "text_encoder_2": clip(64), "text_encoder_3": T5EncoderModel(t5)}
    return _pipeline(
        StableDiffusion3Pipeline, **parts, tokenizer=tokenizer, tokenizer_2=tokenizer, tokenizer_3=make_t5_tokenizer(),
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL(**VAE, latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609),
    )  # fmt: skip


def make_sana() -> Any:
    """AutoencoderDC that halves sides four times, to 8 channels; Gemma of width 16."""
    import torch
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizerFast

    torch.manual_seed(0)
    letters = {name: i for i, name in enumerate(("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"))}
    for letter in "▁abcdefghijklmnopqrstuvwxyz'":
        letters[letter] = len(letters)
    tokenizer = GemmaTokenizerFast(vocab=letters, merges=[])
    # SANA puts long instructions before each prompt: whole words of theirs keep them from being 2,000 letters.
    instruction = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    tokenizer.add_tokens(sorted(set(re.findall(r"\w{3,}", " ".join(instruction)))))
    gemma = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=8192,
    )  # fmt: skip
    transformer = SanaTransformer2DModel(
        patch_size=1, in_channels=8, out_channels=8, num_layers=2, num_attention_heads=2, attention_head_dim=8,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=16,
        sample_size=16,
    )  # fmt: skip
    levels = 5
    vae = AutoencoderDC(
        in_channels=3, latent_channels=8, attention_head_dim=2, encoder_block_types=("ResBlock",) * levels,
        decoder_block_types=("ResBlock",) * levels, encoder_block_out_channels=(8,) * levels,
        decoder_block_out_channels=(8,) * levels, encoder_qkv_multiscales=((),) * levels,
        decoder_qkv_multiscales=((),) * levels, encoder_layers_per_block=(1,) * levels,
        decoder_layers_per_block=(1,) * levels, downsample_block_type="conv", upsample_block_type="interpolate",
        decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41407,
    )  # fmt: skip
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return _pipeline(
        SanaPipeline, tokenizer=tokenizer, text_encoder=Gemma2Model(gemma), vae=vae, transformer=transformer,
        scheduler=scheduler,
    )  # fmt: skip


def make_sana_sprint() -> Any:
    """The same with a transformer that is told the guidance scale."""
    from diffusers import SanaSprintPipeline, SanaTransformer2DModel, SCMScheduler

    parts = make_sana().components
    told = {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}
    transformer = SanaTransformer2DModel.from_config(parts["transformer"].config, **told)
    return _pipeline(SanaSprintPipeline, **parts | {"transformer": transformer, "scheduler": SCMScheduler()})


def make_flux2_klein() -> Any:
    """4 VAE channels that are packed to 16, with a batch norm that has statistics; Qwen3 of 27 layers of width 8."""
    import torch
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )
    from transformers import Qwen3ForCausalLM

    torch.manual_seed(0)
    tokenizer, config = _qwen(num_hidden_layers=27)
    transformer = Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=3 * config.hidden_size, timestep_guidance_channels=32, axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )  # fmt: skip
    vae = AutoencoderKLFlux2(**VAE, latent_channels=4)
    statistics: Any = vae.bn
    statistics.running_mean.normal_()
    statistics.running_var.uniform_(0.5, 4)
    return _pipeline(
        Flux2KleinPipeline, tokenizer=tokenizer, text_encoder=Qwen3ForCausalLM(config), vae=vae,
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )  # fmt: skip


def make_z_image() -> Any:
    """16 VAE channels with a shift; Qwen3 of width 8."""
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Model

    torch.manual_seed(0)
    tokenizer, config = _qwen(num_hidden_layers=2)
    transformer = ZImageTransformer2DModel(
        in_channels=16, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=config.hidden_size, axes_dims=[8, 4, 4], axes_lens=[1024, 32, 32],
    )  # fmt: skip
    for parameter in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(parameter, std=0.02)
    return _pipeline(
        ZImagePipeline, tokenizer=tokenizer, text_encoder=Qwen3Model(config), transformer=transformer,
        vae=AutoencoderKL(**VAE, latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


FAMILIES: dict[str, Callable[[], Any]] = {
    "stable_diffusion_3": make_stable_diffusion_3,
    "sana": make_sana,
    "flux2_klein": make_flux2_klein,
    "z_image": make_z_image,
}
VAE: dict[str, Any] = {
    "block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "layers_per_block": 1, "norm_num_groups": 4,
    "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip


def save_families(root: Path) -> dict[str, Path]:
    """The folder of each family's tiny pipeline."""
    folders = {}
    for name, make in FAMILIES.items():
        make().save_pretrained(root / name)
        folders[name] = root / name
    return folders


def make_t5_tokenizer() -> Any:
    from transformers import T5TokenizerFast

    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((letter, -2.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"),
    ]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, additional_special_tokens=[])


def _qwen(num_hidden_layers: int) -> tuple[Any, Any]:
    from transformers import Qwen2TokenizerFast, Qwen3Config

    letters = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    for letter in (*"abcdefghijklmnopqrstuvwxyz'<>/|_", "Ġ", "Ċ"):
        letters[letter] = len(letters)
    tokenizer = Qwen2TokenizerFast(vocab=letters, merges=[], eos_token="<|im_end|>", chat_template=CHAT)
    tokenizer.add_tokens(["<|im_start|>"], special_tokens=True)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=16, num_hidden_layers=num_hidden_layers,
        num_attention_heads=2, num_key_value_heads=1, head_dim=4, max_position_embeddings=1024,
    )  # fmt: skip
    return tokenizer, config


def _pipeline(kind: Any, **components: Any) -> Any:
    pipe = kind(**{name: part.eval() if hasattr(part, "eval") else part for name, part in components.items()})
    pipe.set_progress_bar_config(disable=True)
    return pipe

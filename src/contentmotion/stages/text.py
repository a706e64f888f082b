"""Prompts -> embeddings, the null prompt, prompt dropout: shared by pipelines, training and distillation."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

NULL_PROMPT = ""
CHAT_START = 3  # tokens in front of a prompt in a chat: "<|im_start|>", "user" and a new line


def encode_prompts(
    tokenizer: Any, text_encoder: Any, prompts: Sequence[str] | Tensor
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b p"]]:
    """Text features of prompts: per token for cross-attention, and pooled for adaLN (CMD section 3.2).

    Args:
        tokenizer: CLIP's; longer prompts are cut to its ``model_max_length``.
        text_encoder: CLIP's text model, with or without projection.
        prompts: One prompt per item, or what ``tokenize`` made of them.

    Returns:
        Last hidden states as Stable Diffusion takes them, and the end-of-text feature.
    """
    tokens = prompts if isinstance(prompts, Tensor) else tokenize(tokenizer, prompts, text_encoder.device)
    encoded = text_encoder(tokens)
    pooled = encoded.text_embeds if "text_embeds" in encoded else encoded.pooler_output
    return encoded.last_hidden_state, pooled


_TOKENS: WeakKeyDictionary[Any, dict[tuple, dict[str, Tensor]]] = WeakKeyDictionary()
MOST_TOKENIZED = 2**16  # prompts that a tokenizer's tokens are kept of, 40 MB at 77 tokens each


def tokenize(tokenizer: Any, prompts: Sequence[str], device: torch.device) -> Int[Tensor, "b n"]:
    """Tokens of prompts on a device, all of the tokenizer's ``model_max_length``.

    Training sees the same captions again and again: they are kept there, for tokenising a large batch takes longer than
    a small network's step, and the processor waits for the copy.
    """
    length = tokenizer.model_max_length
    known = _TOKENS.setdefault(tokenizer, {}).setdefault((len(tokenizer), length, device), {})  # words may be added
    if any(prompt not in known for prompt in prompts):
        if len(known) > MOST_TOKENIZED:
            known.clear()
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        with torch.inference_mode(False):  # or training would refuse what sampling has left here
            tokens = tokenizer(new, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            known |= dict(zip(new, tokens.input_ids.to(device), strict=True))
    return torch.stack([known[prompt] for prompt in prompts])


def cut_words(tokenizer: Any, prompt: str, most: int | None = None) -> str:
    """What of a prompt is beyond the tokens that its encoder takes, special ones included: ``most``, or the tokenizer's
    ``model_max_length`` when None; "" where nothing is."""
    # With a limit of its own, or transformers would have a word to say about it.
    tokens = tokenizer(prompt, truncation=True, max_length=1_000_000).input_ids
    kept, end = most or tokenizer.model_max_length, len(tokens)
    if end <= kept:
        return ""
    closing = int(tokens[-1] == tokenizer.eos_token_id)  # CLIP and T5 put an end token behind what is left
    return tokenizer.decode(tokens[kept - closing : end - closing]).strip()


def unknown_words(tokenizer: Any, prompt: str) -> list[str]:
    """Words of a prompt that the tokenizer has no tokens for some letters of; punctuation may be dropped.

    A CLIP tokenizer made from captions knows at the end of a word the letters that end one of theirs. It says "end of
    text" for others, and so does CLIP's pooled feature stop there.
    """
    words = [word for word in (word.strip(string.punctuation) for word in prompt.split()) if word]
    if tokenizer.unk_token_id is None or not words:
        return []
    tokens = tokenizer(words, add_special_tokens=False, truncation=True, max_length=1_000_000).input_ids
    return [word for word, ids in zip(words, tokens, strict=True) if tokenizer.unk_token_id in ids]


class TextFeatures:
    """Features of prompts, each encoded once; for text encoders whose weights do not change meanwhile.

    Args:
        capacity: Prompts that are remembered; the longest unused ones are forgotten.
    """

    def __init__(self, capacity: int = 256) -> None:
        self.capacity = capacity
        self._known: dict[str, dict[str, Tensor]] = {}

    def encode(
        self, text_features: Callable[[Sequence[str]], dict[str, Tensor]], prompts: Sequence[str]
    ) -> dict[str, Tensor]:
        """What ``Stage.text_features`` gives."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if new:
            features = text_features(new)
            self._known |= {prompt: {k: v[i] for k, v in features.items()} for i, prompt in enumerate(new)}
        found = {prompt: self._known.pop(prompt) for prompt in dict.fromkeys(prompts)}
        self._known |= found  # the last used are the last in line
        for prompt in list(self._known)[: -self.capacity]:
            del self._known[prompt]
        return {name: torch.stack([found[prompt][name] for prompt in prompts]) for name in found[prompts[0]]}


def masked_mean(tokens: Float[Tensor, "b n d"], mask: Tensor) -> Float[Tensor, "b d"]:
    """Mean of each prompt's token features, padding (mask (b, n) of 0) left out: what stands for a prompt as a whole
    where a family has no pooled feature."""
    weights = mask.to(tokens.device, torch.float32)[..., None]  # bfloat16 cannot count to 300
    return ((tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)).to(tokens.dtype)


def make_text_encoder(
    captions: Iterable[str], *, vocab_size: int, hidden_size: int, num_layers: int, max_length: int = 32,
    bag_of_words: bool = False,
) -> tuple[Any, Any]:  # fmt: skip
    """A small CLIP tokenizer and text encoder from scratch, in the layout of a Stable Diffusion folder; the encoder is
    untrained, initialised from torch's global generator.

    Args:
        captions: The vocabulary is learned from these (byte-pair encoding, lower case).
        vocab_size: Its greatest size.
        hidden_size: Width of the encoder; a multiple of 32, the size of its heads.
        num_layers: Depth of the encoder.
        max_length: Tokens per prompt.
        bag_of_words: Start as ``start_as_words`` says.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = _train_tokenizer(list(captions), vocab_size)
    tokenizer.model_max_length = max_length
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 32,
        max_position_embeddings=max_length,
        projection_dim=hidden_size,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    text_encoder = CLIPTextModel(config).to(torch.float32)
    if bag_of_words:
        start_as_words(text_encoder)
    return tokenizer, text_encoder


@torch.no_grad()
def start_as_words(text_encoder: Any) -> None:
    """Makes an untrained CLIP text encoder tell prompts apart by their words alone (ours).

    As CLIP starts, places and padding, which is most of a short prompt, are as loud as the words. Here places say
    nothing, and what begins, ends and pads a prompt is zero and stays so: these tokens carry what attention brings
    them, the mean of the prompt's words, and the empty prompt is zero to the end.
    """
    embeddings = text_encoder.text_model.embeddings if hasattr(text_encoder, "text_model") else text_encoder.embeddings
    words = embeddings.token_embedding.weight
    torch.nn.init.normal_(words, std=0.1)
    torch.nn.init.zeros_(embeddings.position_embedding.weight)
    silent = [text_encoder.config.bos_token_id, text_encoder.config.eos_token_id]
    words[silent] = 0
    # In front of a LayerNorm the gradient at zero has no bound.

    def silence(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        for row in silent:  # one by one: a list of them would be copied to a GPU, which the processor waits for
            gradient[row] = 0
        return gradient

    words.register_hook(silence)


def _train_tokenizer(captions: Sequence[str], vocab_size: int) -> Any:
    """CLIP's tokenizer with a vocabulary learned from captions; the same captions give the same one."""
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer
    from transformers import CLIPTokenizer

    empty = CLIPTokenizer()
    backend = empty.backend_tokenizer
    words = (backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text)) for text in captions)
    ends = sorted({word[-1] for found in words for word, _ in found})
    # Letters that end words would be numbered in the order of a hash table, and so would what is merged of them.
    numbered = [empty.bos_token, empty.eos_token, *(f"{letter}</w>" for letter in ends)]
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=numbered,
        initial_alphabet=ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    backend.train_from_iterator(captions, trainer=trainer)
    model = json.loads(backend.to_str())["model"]
    return CLIPTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])

"""Text encoders from scratch: the same captions give the same tokenizer. Prompts that are too long for theirs."""

import logging
from pathlib import Path

import pytest
import torch

from contentmotion.pipelines.loading import load_pipeline
from contentmotion.pipelines.sampling import warn_once
from contentmotion.stages.text import cut_words, encode_prompts, make_text_encoder, unknown_words

CAPTIONS = ["a small white star spins", "a large red square moves left over a blue background", "Zebras, 2 of them!"]


def test_tokenizer_depends_on_the_captions_alone() -> None:
    """The trainer numbers letters that end words in the order of a hash table, which differs from run to run."""
    vocabularies = []
    for _ in range(4):
        tokenizer, _ = make_text_encoder(CAPTIONS, vocab_size=320, hidden_size=32, num_layers=1)
        vocabularies.append((tokenizer.get_vocab(), tokenizer(CAPTIONS).input_ids))
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)


def test_tokens_are_those_of_the_captions() -> None:
    tokenizer, encoder = make_text_encoder(CAPTIONS, vocab_size=600, hidden_size=32, num_layers=1, max_length=12)
    assert tokenizer.tokenize("a white star") == ["a</w>", "white</w>", "star</w>"]
    ids = tokenizer("a star", padding="max_length", max_length=12).input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[3] == tokenizer.eos_token_id and len(ids) == 12
    assert encoder.config.vocab_size == len(tokenizer) <= 600


def test_a_bag_of_words_tells_its_words_and_nothing_else() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 600, "hidden_size": 32, "num_layers": 1, "max_length": 12}
    tokenizer, encoder = make_text_encoder(CAPTIONS, **sizes, bag_of_words=True)
    _, pooled = encode_prompts(tokenizer, encoder, ["", "a small star", "star small a", "a large star"])
    assert pooled[0].abs().max() == 0, "the empty prompt says nothing"
    torch.testing.assert_close(pooled[1], pooled[2])
    assert (pooled[1] - pooled[3]).abs().max() > 0.1
    pooled.square().sum().backward()
    rows = encoder.get_input_embeddings().weight.grad.abs().sum(1)
    silent = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert rows[silent].sum() == 0 and rows[tokenizer("small").input_ids[1]] > 0 and torch.isfinite(rows).all()


def test_what_is_cut_off_a_prompt_is_named(tiny_pipeline_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """32 tokens, two of them start and end: the words beyond the thirtieth are lost, and said."""
    pipe = load_pipeline(str(tiny_pipeline_dir))
    pipe.set_progress_bar_config(disable=True)
    words = ["rocket"] * 29 + ["moving", "square", "cat"]
    tokens = [len(pipe.tokenizer(" ".join(words[:n])).input_ids) for n in range(len(words) + 1)]
    fit = max(n for n, count in enumerate(tokens) if count <= pipe.tokenizer.model_max_length)
    lost = " ".join(words[fit:])
    assert cut_words(pipe.tokenizer, " ".join(words)) == lost and cut_words(pipe.tokenizer, "rocket") == ""
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for prompt in ("rocket", " ".join(words), " ".join(words)):
            pipe(prompt, num_inference_steps=1, output_type="latent")
    ours = [record.message for record in caplog.records if record.name.startswith("contentmotion")]
    assert [lost in message for message in ours] == [True]


def test_what_the_tokenizer_does_not_know_is_named(tiny_pipeline_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No caption's word ends in "9" or "q"; none has a "!" either, which nobody misses."""
    pipe = load_pipeline(str(tiny_pipeline_dir))
    pipe.set_progress_bar_config(disable=True)
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for prompt in ("cat!", "a 9 q-cat miq."):
            pipe(prompt, num_inference_steps=1, output_type="latent")
    ours = [record.message for record in caplog.records if record.name.startswith("contentmotion")]
    assert len(ours) == 1 and "of the prompt 'a 9 q-cat miq.' " in ours[0] and "of '9', 'q-cat', 'miq':" in ours[0]
    assert unknown_words(pipe.tokenizer, "") == unknown_words(pipe.tokenizer, "!") == []

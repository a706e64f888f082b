"""Text encoders from scratch: the same captions give the same tokenizer. Prompts that are too long for theirs."""

import logging
from pathlib import Path

import pytest

from contentmotion.pipelines.loading import load_pipeline
from contentmotion.pipelines.sampling import warn_once
from contentmotion.stages.text import cut_words, make_text_encoder

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

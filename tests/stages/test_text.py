"""Text encoders from scratch: the same captions give the same tokenizer."""

from contentmotion.stages.text import make_text_encoder

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

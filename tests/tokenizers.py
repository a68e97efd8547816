"""Four kinds of tokenizers, made in the test: what models in use do with spaces and with the beginning of a text."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.conftest import SENTENCES

TEXTS = SENTENCES * 4


def leading_space() -> PreTrainedTokenizerFast:
    """GPT-2's manner: bytes, a word's space is part of its token, nothing before a text."""
    return _bytes("<|end|>", eos_token="<|end|>")


def with_bos() -> PreTrainedTokenizerFast:
    """Llama 3's and OPT's manner: bytes, and a token before every text."""
    made = _bytes("<|begin|>", bos_token="<|begin|>")
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    return made


def sentencepiece() -> PreTrainedTokenizerFast:
    """Llama 2's and Gemma's manner: "▁" for spaces and before every text, <s> in front."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # merges stay within words
    _train(tokenizer, ["<unk>", "<s>"])
    tokenizer.pre_tokenizer = None
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def without_spaces() -> PreTrainedTokenizerFast:
    """BERT's manner: text is split at spaces, and no token holds one."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    _train(tokenizer, ["<unk>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


KINDS = {made.__name__: made for made in (leading_space, with_bos, sentencepiece, without_spaces)}


def _bytes(special: str, **names: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    _train(tokenizer, [special], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _train(tokenizer: Tokenizer, special: list[str], **settings: object) -> None:
    trainer = trainers.BpeTrainer(vocab_size=390, special_tokens=special, show_progress=False, **settings)
    tokenizer.train_from_iterator(TEXTS, trainer)

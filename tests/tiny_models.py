"""Small sentence-transformers models with random weights, saved as real ones are."""

# ruff: noqa: PLC0415 - torch is loaded by the tests that need it, not by collecting them

from collections.abc import Mapping
from pathlib import Path
from typing import Any

WORDS = (
    "the of a to in and is for on that with as it be at by this from are was how what when who "
    "where which cold room store house open light book crate delivery claim sign count number "
    "question answer document passage query footnote time day week invoice price"
)
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;?!-()"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
DIMENSIONS = 32
MAX_TOKENS = 48


def save_tiny_model(
    folder: Path,
    *,
    pooling: str = "mean",
    prompts: Mapping[str, str] | None = None,
    extra_modules: tuple[Any, ...] = (),
    seed: int = 0,
) -> Path:
    """A two-layer BERT of DIMENSIONS dimensions that reads MAX_TOKENS tokens."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertModel

    base = folder.with_name(f"{folder.name}-base")
    BertModel(_prepare(base, seed)).save_pretrained(base)
    modules = [Transformer(str(base)), Pooling(DIMENSIONS, pooling), *extra_modules]
    model = SentenceTransformer(modules=modules, device="cpu", prompts=dict(prompts or {}))
    model.save(str(folder), create_model_card=False)
    return folder


def save_tiny_cross_encoder(folder: Path, *, labels: int = 1, seed: int = 0) -> Path:
    """The same BERT, reading pairs and giving each a score (or one for each of `labels`)."""
    from sentence_transformers import CrossEncoder
    from transformers import BertForSequenceClassification

    base = folder.with_name(f"{folder.name}-base")
    configuration = _prepare(base, seed)
    configuration.num_labels = labels
    BertForSequenceClassification(configuration).save_pretrained(base)
    CrossEncoder(str(base), device="cpu").save_pretrained(str(folder))
    return folder


def _prepare(base: Path, seed: int) -> Any:
    """Save the tokenizer in `base`; the configuration of a model beside it."""
    import torch
    from transformers import BertConfig, BertTokenizerFast

    vocabulary = [*SPECIAL_TOKENS, *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS.split()]
    torch.manual_seed(seed)
    configuration = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=DIMENSIONS,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=MAX_TOKENS,
        initializer_range=0.5,
    )
    BertTokenizerFast(
        vocab={token: number for number, token in enumerate(dict.fromkeys(vocabulary))},
        model_max_length=MAX_TOKENS,
    ).save_pretrained(base)
    return configuration

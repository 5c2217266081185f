"""Raw text → token ids, by ops that stock TensorFlow Serving links."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras_nlp
import tensorflow as tf

from tfrec.errors import DataError, EncoderError

UNKNOWN_LIMIT = 0.10
_SEPARATOR = ". "
_BLANK = r"[\s\p{Z}]"
# BERT's text cleaning: controls, format characters and U+FFFD vanish, every kind of space becomes " ".
_INVISIBLE = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x{9f}\p{Cf}\p{Co}\x{fffd}]"
_SPECIAL_TOKENS = 2


class Statistics(NamedTuple):
    """How well a vocabulary and a length fit some texts.

    Args:
        unknown: share of [UNK] among all tokens, special ones and padding aside.
        truncated: share of the texts that lose tokens.
    """

    unknown: float
    truncated: float


class Tokenizer:
    """WordPiece token ids of raw text: ``[CLS] pieces [SEP]``, padded with 0; the mask is ``ids != 0``.

    Reference: Devlin et al., BERT, arXiv:1810.04805; Song et al., Fast WordPiece, arXiv:2012.15524.

    Args:
        preset: a folder, preset name or handle that KerasHub reads.
        length: tokens of a row, [CLS] and [SEP] included; what is longer loses its end.

    Raises:
        EncoderError: the preset has no WordPiece vocabulary, or its padding is not 0.
    """

    def __init__(self, preset: str, length: int):
        if length < _SPECIAL_TOKENS + 1:
            raise EncoderError("a text's length in tokens must leave room between [CLS] and [SEP]", length)
        source = _load(preset)
        if source.pad_token_id != 0:
            raise EncoderError("a text encoder's vocabulary must begin with [PAD]", source.get_vocabulary()[:5])
        self.length = length
        self.lowercase = bool(source.lowercase)
        self.strip_accents = _strips_accents(preset, source)
        self.vocabulary: list[str] = source.get_vocabulary()
        self._unknown: int = source.token_to_id(source.oov_token)
        # Lower-casing is done in _clean: BertTokenizer's folds compatibility forms and composes what was decomposed.
        self._pieces = keras_nlp.models.BertTokenizer(
            self.vocabulary, lowercase=False, strip_accents=self.strip_accents
        )
        self._pack = keras_nlp.layers.StartEndPacker(
            length, start_value=self._pieces.cls_token_id, end_value=self._pieces.sep_token_id, pad_value=0
        )
        # Outside a tf.function, KerasHub tokenises in pure Python: other code than the one that serves.
        self._call = tf.function(self._ids, input_signature=[tf.TensorSpec([None], tf.string)])
        self._ragged = tf.function(self._split, input_signature=[tf.TensorSpec([None], tf.string)])

    def __call__(self, texts: Any) -> tf.Tensor:
        """Token ids.

        Args:
            texts: [B] UTF-8 strings; bytes that are not UTF-8 are skipped.

        Returns:
            int32 [B, length].
        """
        return self._call(tf.convert_to_tensor(texts, tf.string))

    def statistics(self, texts: Sequence[str], batch: int = 4096) -> Statistics:
        """Shares of unknown tokens and of truncated texts; both 0 where there is nothing to count."""
        pieces = unknown = truncated = 0
        for start in range(0, len(texts), batch):
            ragged = self._ragged(tf.constant(texts[start : start + batch], tf.string))
            pieces += int(tf.size(ragged.flat_values))
            unknown += int(tf.math.count_nonzero(ragged.flat_values == self._unknown))
            truncated += int(tf.math.count_nonzero(ragged.row_lengths() > self.length - _SPECIAL_TOKENS))
        return Statistics(unknown / max(pieces, 1), truncated / max(len(texts), 1))

    def _ids(self, texts: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(self._pack(self._split(texts)), [None, self.length])  # [B, S]

    def _split(self, texts: tf.Tensor) -> tf.RaggedTensor:
        return self._pieces(self._clean(texts))

    def _clean(self, texts: tf.Tensor) -> tf.Tensor:
        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8")
        texts = tf.strings.regex_replace(texts, _INVISIBLE, "")
        texts = tf.strings.regex_replace(texts, _BLANK, " ")
        if self.lowercase:
            # Unicode lower-casing obeys the server's locale (Turkish takes the dot off an I); ASCII's does not.
            texts = tf.strings.lower(tf.strings.lower(texts), encoding="utf-8")
        return texts


def join_text(columns: Sequence[tf.Tensor]) -> tf.Tensor:
    """One text of several columns: stripped, empty ones skipped, joined by ". ".

    Args:
        columns: strings of equal shape.

    Returns:
        strings of that shape.

    Raises:
        DataError: there is no column.
    """
    if not columns:
        raise DataError("an item's text needs at least one column", [], "Set features.text.columns")
    text, *others = [tf.strings.regex_replace(column, f"^{_BLANK}+|{_BLANK}+$", "") for column in columns]
    for column in others:
        separator = tf.where((text == "") | (column == ""), "", _SEPARATOR)
        text = tf.strings.join([text, separator, column])
    return text


def warn_unknown(share: float, encoder: str) -> None:
    """Warns when an encoder's vocabulary cannot read a shop's language.

    Args:
        share: of [UNK] tokens, as in ``Statistics.unknown``.
        encoder: the setting features.text.encoder.
    """
    if share > UNKNOWN_LIMIT:
        warnings.warn(
            f"{share:.0%} of the tokens are unknown to the text encoder {encoder!r}: it cannot read this language. "
            'Set features.text.encoder to a BERT of the language of the texts, such as "bert_base_zh" for Chinese, '
            'or to a multilingual one, such as "bert_base_multi"',
            stacklevel=2,
        )


def _load(preset: str) -> Any:
    try:
        return keras_nlp.models.BertTokenizer.from_preset(preset)
    except (OSError, ValueError, KeyError) as error:
        advice = "Use the name of a KerasHub BERT preset, a handle such as hf://owner/model, or a folder"
        raise EncoderError("a text encoder must have a WordPiece vocabulary", f"{preset}: {error}", advice) from error


def _strips_accents(preset: str, source: Any) -> bool:
    # Original BERT strips accents exactly where it lower-cases, unless told otherwise; KerasHub drops that setting.
    settings = Path(preset) / "tokenizer_config.json"
    said = json.loads(settings.read_text(encoding="utf-8")).get("strip_accents") if settings.is_file() else None
    return bool(source.strip_accents or source.lowercase) if said is None else bool(said)

"""A transformer over the history, which each candidate then attends to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfrec.models.layers import CausalTransformer
from tfrec.models.ranking.din import DIN, masked_softmax


@keras.saving.register_keras_serializable("tfrec")
class EncodedAttention(keras.layers.Layer):
    """The history through a transformer once a user; a candidate's heads then look at it.

        y = concat_h softmax_j(q W_h · z_j K_h / √(d/H)) z_j V_h,   z = transformer(history)

    Candidates do not enter the transformer, so that N of them cost one pass. Source: the encoder of Kang & McAuley
    2018 (arXiv 1808.09781) under the candidate attention of Zhou et al. 2018 (arXiv 1706.06978).

    Args:
        blocks, heads, length, dropout: of :class:`CausalTransformer`.

    Call: candidates [B, N, d], history [B, L, d], mask [B, L] -> [B, N, d].
    """

    def __init__(self, blocks: int, heads: int, length: int, dropout: float = 0.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.blocks, self.heads, self.length, self.dropout = blocks, heads, length, dropout
        policy = {"dtype": self.dtype_policy}
        self.encoder = CausalTransformer(blocks, heads, length, dropout, name="encoder", **policy)

    def build(self, input_shape: Sequence[int | None]) -> None:
        width = input_shape[-1]
        assert width is not None
        self.encoder.build((0, self.length, width))
        shape = (self.heads, width, width // self.heads)
        self.query, self.key, self.value = (self.add_weight(shape=shape, name=n) for n in ("query", "key", "value"))
        self.built = True

    def call(self, candidates: Any, history: Any, mask: Any, training: bool = False) -> Any:
        encoded = self.encoder(history, mask, training=training)  # [B, L, d]
        seen = []
        for head in range(self.heads):
            q, k, v = (
                ops.matmul(x, w[head])
                for x, w in ((candidates, self.query), (encoded, self.key), (encoded, self.value))
            )
            logits = ops.matmul(q, ops.swapaxes(k, -1, -2)) / float(k.shape[-1]) ** 0.5  # [B, N, L]
            seen.append(ops.matmul(ops.cast(masked_softmax(logits, mask), v.dtype), v))
        return ops.concatenate(seen, axis=-1)

    def get_config(self) -> dict[str, Any]:
        own = {"blocks": self.blocks, "heads": self.heads, "length": self.length, "dropout": self.dropout}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("tfrec")
class Transformer(DIN):
    """:class:`DIN` whose attention looks at an encoded history.

    Args and Call: of :class:`Body`.
    """

    def make_attention(self) -> keras.layers.Layer:
        s = self.settings
        return EncodedAttention(s.blocks, s.heads, self.sizes.length, s.dropout, name="attention", **self.policy)

    def attend(self, query: Any, history: Any, mask: Any, training: bool) -> Any:
        return self.attention(query, history, mask, training=training)

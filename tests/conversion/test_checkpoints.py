"""What versions and options of fairseq write, and checkpoints that contradict themselves."""

import re

import pytest
import torch

from dynaconv.conversion.fairseq.convert import convert
from dynaconv.models.lightconv.layers import SinusoidalPositions

from .support import LAYOUTS, VARIANTS, arrays_of, checkpoint_of, contents_of, converted, in_layout, save

SOURCE = torch.tensor([[5, 9, 4, 11, 2], [7, 2, 1, 1, 1]])
TARGET = torch.tensor([[2, 6, 8], [2, 9, 9]])


@torch.no_grad()
def logits(model):
    return model(SOURCE, decoder_input_ids=TARGET).logits


def assert_same_model(model, expected):
    assert model.config.to_diff_dict() == expected.config.to_diff_dict()
    assert model.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected.state_dict()[name]), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layout_and_file_format_gives_the_same_model(tmp_path, variant):
    (tmp_path / "expected").mkdir()
    expected, _ = converted(tmp_path / "expected", variant)
    for layout in LAYOUTS:
        for legacy in (False, True):
            folder = tmp_path / f"{layout}-{legacy}"
            folder.mkdir()
            assert_same_model(converted(folder, variant, layout, legacy)[0], expected)


def test_the_layouts_differ():
    _, weights = contents_of("dyn_iwslt")
    names = {layout: frozenset(in_layout(weights, layout)) for layout in LAYOUTS}
    assert len(set(names.values())) == 3  # 0.9 and 0.12 differ beside the weights


def test_half_precision_becomes_single(tmp_path):
    model, folder = converted(
        tmp_path, change=lambda weights: {name: tensor.half() for name, tensor in weights.items()}
    )
    assert model.lm_head.weight.dtype == torch.float32
    expected = torch.from_numpy(arrays_of("dyn_post")["weights/decoder.embed_tokens.weight"])
    assert torch.equal(model.lm_head.weight, expected.half().float())
    assert not torch.equal(model.lm_head.weight, expected)
    assert '"dtype": "float32"' in (folder / "config.json").read_text()


def test_filters_of_the_cuda_kernels(tmp_path):
    def squeeze(weights):
        return {name: tensor.squeeze(1) if name.endswith("conv.weight") else tensor for name, tensor in weights.items()}

    for name in "ab":
        (tmp_path / name).mkdir()
    squeezed, _ = converted(tmp_path / "a", "light_pre", change=squeeze)
    assert_same_model(squeezed, converted(tmp_path / "b", "light_pre")[0])


def test_options_that_old_versions_did_not_have(tmp_path):
    flags, _ = contents_of("dyn_post")
    defaults = {
        "arch": "lightconv", "encoder_conv_dim": 32, "decoder_conv_dim": 32, "decoder_embed_dim": 32, "decoder_ffn_embed_dim": 64,
        "encoder_glu": True, "decoder_glu": True, "encoder_conv_type": "dynamic", "decoder_conv_type": "dynamic",
        "encoder_normalize_before": False, "decoder_normalize_before": False, "encoder_learned_pos": False,
        "decoder_learned_pos": False, "weight_softmax": True, "share_all_embeddings": False, "relu_dropout": 0.0,
        "weight_dropout": flags["attention_dropout"], "max_source_positions": 1024, "max_target_positions": 1024,
    }  # fmt: skip
    assert {name: flags[name] for name in defaults} == defaults
    for name in "ab":
        (tmp_path / name).mkdir()
    model, _ = converted(tmp_path / "a", **{**dict.fromkeys(defaults), "decoder_glu": 1})
    assert_same_model(model, converted(tmp_path / "b")[0])


def test_learned_positions(tmp_path):
    def learned(weights):
        table = SinusoidalPositions(32, 1)._build(1026, torch.device("cpu"))
        return {**weights, "encoder.embed_positions.weight": table, "decoder.embed_positions.weight": table.clone()}

    for name in "ab":
        (tmp_path / name).mkdir()
    flags = {"encoder_learned_pos": True, "decoder_learned_pos": True}
    model, _ = converted(tmp_path / "a", change=learned, **flags)
    assert model.config.position_embedding == "learned"
    expected, _ = converted(tmp_path / "b")
    torch.testing.assert_close(logits(model), logits(expected))
    model.model.encoder.embeddings.positions.weight.data.mul_(2)
    assert not torch.allclose(logits(model), logits(expected))


def shared(weights):
    return {**weights, "encoder.embed_tokens.weight": weights["decoder.embed_tokens.weight"]}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_matrix_for_all_embeddings(tmp_path, layout):
    path = checkpoint_of(tmp_path / "fairseq", layout=layout, change=shared, share_all_embeddings=True)
    path.with_name("dict.xx.txt").write_text(path.with_name("dict.yy.txt").read_text())
    model, tokenizers = convert(path, tmp_path / "ours")
    assert model.config.share_embeddings == "all"
    assert model.lm_head.weight is model.model.encoder.embeddings.tokens.weight
    assert tokenizers["source"] is tokenizers["target"]
    assert (tmp_path / "ours" / "tokenizer_config.json").is_file()
    (tmp_path / "b").mkdir()
    expected, _ = converted(tmp_path / "b", layout=layout, change=shared)
    torch.testing.assert_close(logits(model), logits(expected))


def test_a_joined_dictionary_stands_for_both(tmp_path):
    path = checkpoint_of(tmp_path / "fairseq", change=shared, share_all_embeddings=True)
    path.with_name("dict.yy.txt").rename(path.with_name("dict.joined.txt"))
    _, tokenizers = convert(path, tmp_path / "ours")
    assert tokenizers["source"] is tokenizers["target"]
    assert tokenizers["source"]("y03")["input_ids"] == [7, 2]
    path = checkpoint_of(tmp_path / "fairseq", change=shared)  # embeddings that are not shared
    path.with_name("dict.xx.txt").unlink()
    with pytest.raises(FileNotFoundError, match="there is no dictionary dict.xx.txt"):
        convert(path, tmp_path / "other")


def test_languages_taken_from_the_names_of_the_data(tmp_path):
    path = checkpoint_of(tmp_path / "fairseq")
    flags, weights = contents_of("dyn_post")
    flags |= {"source_lang": None, "target_lang": None}
    save(path, flags, weights, task={"source_lang": "xx", "target_lang": "yy", "encoder_layers": 9})
    _, tokenizers = convert(path, tmp_path / "ours")
    assert tokenizers["source"]("x03 y03")["input_ids"] == [7, 3, 2]
    assert tokenizers["target"]("x03 y03")["input_ids"] == [3, 7, 2]
    save(path, flags, weights)
    with pytest.raises(ValueError, match="option source_lang of the checkpoint must be a language"):
        convert(path, tmp_path / "other")


def without(*names):
    return lambda weights: {name: tensor for name, tensor in weights.items() if not name.startswith(names)}


def also(**weights):
    return lambda own: {**own, **{name.replace("__", "."): tensor for name, tensor in weights.items()}}


WRONG = [
    (without("decoder.layers.1"), {}, "the decoder must have 2 layers as the options say; the checkpoint has 1"),
    (None, {"encoder_layers": 3}, "the encoder must have 3 layers as the options say; the checkpoint has 2"),
    (None, {"encoder_layers": 10**9}, "option encoder_layers of the checkpoint must be from 1 to 1048576; got 1000000000"),
    (without("encoder.layers.0.fc1"), {}, "lacks encoder.layers.0.fc1.bias, encoder.layers.0.fc1.weight"),
    (also(encoder__layers__1__fc3__bias=torch.ones(3)), {}, "has, beyond what its options say, encoder.layers.1.fc3.bias"),
    (also(decoder__layers__0__fc2__bias=torch.ones(3)), {}, "decoder.layers.0.fc2.bias must have the shape [32]"),
    (None, {"decoder_ffn_embed_dim": 10**6}, "fc1.weight must have the shape [1000000, 32]"),
    (None, {"encoder_kernel_size_list": [3, 5]}, "encoder.layers.1.conv.weight_linear.weight must have the shape [20, 32]"),
    (None, {"encoder_kernel_size_list": [3]}, "encoder.layers.1.conv.weight_linear.weight must have the shape [12, 32]"),
    (None, {"encoder_kernel_size_list": ["3", 7]}, "option encoder_kernel_size_list of the checkpoint must be one number, or one for each of 2 layers; got ['3', 7]"),
    (None, {"decoder_kernel_size_list": [3] * 10**4}, "must be one number, or one for each of 2 layers; got [3, 3, 3, 3, 3, 3, ...]"),
    (None, {"decoder_kernel_size_list": [3, 1 << 40]}, "must be one number, or one for each of 2 layers"),
    (also(encoder__layers__0__fc1__bias=torch.tensor(1.0)), {}, "is no checkpoint of fairseq"),
    (also(decoder__layers__0__encoder_attn__in_proj_weight=torch.ones(4, 32)), {}, "must be queries, keys and values; got [4, 32]"),
    (None, {"encoder_attention_heads": 5}, "encoder_conv_dim must be divisible by encoder_heads"),
    (None, {"encoder_embed_dim": "32"}, "option encoder_embed_dim of the checkpoint must be of type int; got '32'"),
    (None, {"encoder_embed_dim": 0, "decoder_embed_dim": 0}, "option encoder_embed_dim of the checkpoint must be from 1 to 1048576; got 0"),
    (None, {"decoder_glu": False}, "the encoder and the decoder must have the same glu"),
    (None, {"encoder_conv_type": "sparse"}, "encoder_conv_type of the checkpoint must be dynamic or lightweight"),
    (None, {"encoder_conv_type": "lightweight"}, "lacks encoder.layers.0.conv.weight"),
    (None, {"arch": "transformer"}, "must be of the architecture lightconv; got 'transformer'"),
    (None, {"arch": "lightconv_lm"}, "there is no dictionary dict.txt in"),
    (None, {"no_token_positional_embeddings": True}, "our models have no no_token_positional_embeddings"),
    (None, {"share_all_embeddings": True}, "must be equal: the checkpoint has one matrix for all embeddings"),
    (None, {"source_lang": "../xx"}, "option source_lang of the checkpoint must be a language"),
    (None, {"source_lang": "x\nx"}, "option source_lang of the checkpoint must be a language"),
    (None, {"source_lang": "x" * 1000}, "option source_lang of the checkpoint must be a language"),
    (None, {"dropout": 10**400}, "option dropout of the checkpoint must be of type float"),
    (also(**{"x\ny": torch.ones(3)}), {}, "is no checkpoint of fairseq"),
    (also(**{"x" * 1000: torch.ones(3)}), {}, "is no checkpoint of fairseq"),
    (None, {"target_lang": None}, "option target_lang of the checkpoint must be a language"),
    (None, {"target_lang": "zz"}, "there is no dictionary dict.zz.txt in"),
    (also(encoder__layers__0__fc1__bias=torch.ones(64, dtype=torch.int64)), {}, "encoder.layers.0.fc1.bias must be of floating point"),
    (also(decoder__output_projection__weight=torch.zeros(35, 32)), {}, "must be equal as the options say"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "flags", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_contradictions_are_refused(tmp_path, change, flags, message):
    path = checkpoint_of(tmp_path / "fairseq", change=change, **flags)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)) as refused:
        convert(path, tmp_path / "new" / "ours")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500 + len(str(tmp_path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["fairseq"]


def test_a_dictionary_of_another_size(tmp_path):
    path = checkpoint_of(tmp_path / "fairseq")
    with path.with_name("dict.yy.txt").open("a") as file:
        file.write("surplus 1\n")
    with pytest.raises(ValueError, match=re.escape("decoder.embed_tokens.weight must have the shape [36, 32]")):
        convert(path, tmp_path / "ours")


def test_folders_on_the_way_are_made(tmp_path):
    convert(checkpoint_of(tmp_path / "fairseq"), tmp_path / "a" / "b" / "ours")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "fairseq"]
    (folder,) = (tmp_path / "a" / "b").iterdir()
    assert len({path.stat().st_mode for path in folder.iterdir() if path.is_file()}) == 1


def test_the_folder_is_not_overwritten(tmp_path):
    path = checkpoint_of(tmp_path / "fairseq")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already: give a new folder"):
        convert(path, tmp_path / "ours")
    (tmp_path / "ours" / "thesis.txt").unlink()
    convert(path, tmp_path / "ours")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        convert(tmp_path / "nowhere.pt", tmp_path / "other")

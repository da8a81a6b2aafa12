"""What is loaded has the weights that its configuration tells of, or is refused in one line."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dynaconv.models import LightConvConfig, LightConvForConditionalGeneration
from dynaconv.training.loading import load_model, load_network, read_config, reader

SIZES = {"vocab_size": 20, "d_model": 16, "encoder_heads": 2, "decoder_heads": 2, "encoder_ffn_dim": 16}
LAYERS = {"encoder_layers": 2, "decoder_layers": 1, "encoder_kernel_sizes": [3], "decoder_kernel_sizes": [3]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    LightConvForConditionalGeneration(LightConvConfig(**SIZES, **LAYERS, decoder_ffn_dim=16)).save_pretrained(folder)
    return folder


def changed(saved, folder, config=(), weights=lambda tensors: tensors):
    content = json.loads((saved / "config.json").read_text()) | dict(config)
    (folder / "config.json").write_text(json.dumps(content))
    save_file(weights(load_file(saved / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    return folder


CONFIGS = {
    "more layers": ({"encoder_kernel_sizes": [3, 3, 3], "encoder_layers": 3}, "weights are missing, such as model.encoder.layers.2"),
    "fewer layers": ({"encoder_kernel_sizes": [3], "encoder_layers": 1}, "weights are not in it, such as model.encoder.layers.1"),
    "another width": ({"d_model": 32}, "RuntimeError"),
    "absurd": ({"vocab_size": 10**12}, "RuntimeError"),
    "null": ({"d_model": None}, "expected int, got NoneType"),
    "another type": ({"d_model": "wide"}, "expected int, got str"),
    "tokens": ({"eos_token_id": "x"}, "eos_token_id"),
    "no model": ({"model_type": None}, "model type `None`"),
    "no dtype": ({"dtype": "float1"}, "has no attribute"),
    "no heads": ({"encoder_heads": 0}, "encoder_heads = 0"),
    "dropout": ({"dropout": 2}, "dropout must be at least 0 and below 1; got 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations_that_are_not_of_the_weights(case, saved, tmp_path):
    config, message = CONFIGS[case]
    with pytest.raises(ValueError, match=f"cannot be loaded, a file of it may be damaged: .*{message}") as caught:
        load_model(changed(saved, tmp_path, config), "cpu")
    assert "\n" not in str(caught.value)


def without_one(tensors):
    return {name: tensor for name, tensor in tensors.items() if "norm" not in name}


def with_nan(tensors):
    tensors["model.encoder.layers.0.mixer_norm.bias"][3] = torch.nan
    return tensors


@pytest.mark.parametrize(
    ("weights", "message"),
    [(without_one, "weights are missing, such as"), (with_nan, "1 weights are infinite or NaN, such as model.enc")],
)
def test_weights_that_are_no_model(weights, message, saved, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_model(changed(saved, tmp_path, weights=weights), "cpu")


def test_what_is_whole_is_loaded(saved, tmp_path):
    """The control: copies as the tests above make them, without a fault."""
    path = changed(saved, tmp_path)
    network = load_network(reader(read_config(path)), path)
    assert all(map(torch.isfinite, [parameter.sum() for parameter in network.parameters()]))

"""Errors of inputs that are no tensors, and of models that are none, say what to write."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fxlrp
from fxlrp.errors import CaptureError, InputError, StartError


@pytest.fixture(scope="module")
def explainer():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return fxlrp.compile(net.eval())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Image.new("RGB", (8, 8)), r"not Image: .*transform\(image\)\.unsqueeze\(0\)"),
        (np.zeros((1, 3, 8, 8)), r"not ndarray: torch\.from_numpy"),
        ("a text", r"not str: .*language_model"),
    ],
)
def test_what_is_no_tensor_is_told_how_to_become_one(explainer, given, said):
    with pytest.raises(InputError, match=said):
        explainer(given)


def test_a_dict_of_a_tokenizer_is_given_by_name(explainer):
    transformers = pytest.importorskip("transformers")
    with pytest.raises(InputError, match=r"not BatchEncoding: give its entries by name, explainer\(\*\*inputs\)"):
        explainer(transformers.BatchEncoding({"input_ids": torch.ones(1, 2, dtype=torch.long)}))


def test_items_in_a_list_are_given_one_after_the_other(explainer):
    with pytest.raises(CaptureError, match=r"given in a list: .*torch\.stack\(items\).*one item after the other"):
        explainer([torch.randn(3, 8, 8), torch.randn(3, 9, 9)])


def test_a_sequence_of_logits_asks_for_a_token():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(10, 4), nn.Linear(4, 10)

        def forward(self, ids):
            return self.head(self.table(ids))

    with pytest.raises(StartError, match=r"output=lambda out: out\.logits\[:, -1\]"):
        fxlrp.compile(Tokens().eval())(torch.ones(2, 3, dtype=torch.long))


def test_a_path_without_a_file_is_no_model():
    with pytest.raises(CaptureError, match=r"not str: load it first.*onnx2torch"):
        fxlrp.compile("model.onnx")

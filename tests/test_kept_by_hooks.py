"""Features that a hook keeps and forward() reads: on the module, in a dict or a list of the model."""

import pytest
import torch
from torch import nn

import fxlrp


class Kept(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU())
        self.head = nn.Linear(12, 3)
        self.listen()

    def forward(self, x):
        self.clear()
        self.body(x)
        return self.head(torch.cat(self.features(), -1).mean(1))

    def clear(self):
        pass


class OnModules(Kept):
    def listen(self):
        for place in (1, 3):
            self.body[place].register_forward_hook(lambda module, args, out: setattr(module, "kept", out))

    def features(self):
        return [self.body[1].kept, self.body[3].kept]


class InADict(Kept):
    def listen(self):
        self.found = {}
        for place in (1, 3):
            self.body[place].register_forward_hook(self.keeper(place))

    def keeper(self, place):
        def keep(module, args, out):
            self.found[place] = out

        return keep

    def features(self):
        return [self.found[1], self.found[3]]


class InAList(Kept):
    def listen(self):
        self.found = found = []
        for place in (1, 3):
            self.body[place].register_forward_hook(lambda module, args, out: found.append(out))

    def clear(self):
        self.found.clear()

    def features(self):
        return self.found


@pytest.mark.parametrize("kind", [OnModules, InADict, InAList])
def test_what_hooks_keep_is_a_part_of_the_model(kind):
    torch.manual_seed(0)
    model, x = kind().double().eval(), torch.randn(3, 5, 4, dtype=torch.float64)
    with pytest.warns(UserWarning, match="hooks"):
        explainer = fxlrp.compile(model, "conserving")
    explanation = explainer(x)
    torch.testing.assert_close(explanation.relevance.sum((1, 2)), explanation.start)
    assert not getattr(model, "found", None)  # the model keeps nothing of what ran on its double
    torch.testing.assert_close(explanation.output, model(x))
    torch.testing.assert_close(explainer(x[1:2]).relevance[0], explanation.relevance[1])

"""Small vision transformers, and what LXT says of them: live, and for the stored maps.

LXT has two forms. *Explicit*: functions whose backward pass is a rule. *Efficient*: forward passes patched so
that gradient × input is LRP with no stabilizer. Both are used as they are; only the models of ``lxt.efficient``
are not imported, for they need names that newer versions of transformers do not have.
"""

import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import torch
import torch.nn.functional as F
from seeded import seeded, seeded_normal
from torch import nn
from torchvision.models import VisionTransformer

GOLDEN = Path(__file__).parent / "golden" / "lxt.npz"
EPSILON = 1e-12
"""The explicit form's stabilizer, which LXT adds without a sign."""
WIDTH, HEADS, CLASSES = 16, 2, 5
TARGET = 2


def attend(query, key, value, matmul=torch.matmul, softmax=lambda scores: scores.softmax(-1)):
    return matmul(softmax(matmul(query, key.mT)), value)


PLAIN = SimpleNamespace(linear=F.linear, norm=F.layer_norm, add=torch.add, gelu=F.gelu, attend=attend)


class Block(nn.Module):
    """A pre-norm block, out of operations that can be exchanged."""

    def __init__(self, operations):
        super().__init__()
        self.operations = operations
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x):
        o = self.operations
        h = o.norm(x, (WIDTH,), self.norm1.weight, self.norm1.bias, self.norm1.eps)
        q, k, v = (
            o.linear(h, layer.weight, layer.bias).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = o.attend(q, k, v).transpose(1, 2).flatten(2)
        x = o.add(x, o.linear(mixed, self.out.weight, self.out.bias))
        h = o.norm(x, (WIDTH,), self.norm2.weight, self.norm2.bias, self.norm2.eps)
        h = o.gelu(o.linear(h, self.up.weight, self.up.bias))
        return o.add(x, o.linear(h, self.down.weight, self.down.bias))


class TinyViT(nn.Module):
    """Patches, a class token, positions, two blocks and a head."""

    def __init__(self, operations=PLAIN):
        super().__init__()
        self.operations = operations
        self.embed, self.head, self.norm = nn.Linear(48, WIDTH), nn.Linear(WIDTH, CLASSES), nn.LayerNorm(WIDTH)
        self.token, self.position = nn.Parameter(torch.zeros(1, 1, WIDTH)), nn.Parameter(torch.zeros(1, 10, WIDTH))
        self.blocks = nn.Sequential(Block(operations), Block(operations))

    def forward(self, x):
        o = self.operations
        patches = F.unfold(x, 4, stride=4).transpose(1, 2)
        h = o.linear(patches, self.embed.weight, self.embed.bias)
        h = o.add(torch.cat([self.token.expand(x.shape[0], -1, -1), h], 1), self.position)
        h = self.blocks(h)
        h = o.norm(h, (WIDTH,), self.norm.weight, self.norm.bias, self.norm.eps)
        return o.linear(h[:, 0], self.head.weight, self.head.bias)


def torchvision_vit():
    return VisionTransformer(
        image_size=12, patch_size=4, num_layers=2, num_heads=HEADS, hidden_dim=WIDTH, mlp_dim=32, num_classes=CLASSES
    )


def make(model, *, positions):
    """Seeded; without positions what enters a transformer is what its input became."""
    model = seeded(model).requires_grad_(False)
    if not positions:
        name = "encoder.pos_embedding" if isinstance(model, VisionTransformer) else "position"
        model.get_parameter(name).zero_()
    return model


def images():
    return seeded_normal(2, 3, 12, 12, seed=3)


# LXT's side ------------------------------------------------------------------------------------


def explicit():
    """The operations of AttnLRP as LXT's functions."""
    from lxt.explicit import functional as lf
    from lxt.explicit.rules import identity

    matmul = partial(lf.matmul, inplace=False, epsilon=EPSILON)
    softmax = partial(lf.softmax, dim=-1)
    return SimpleNamespace(
        linear=lambda x, weight, bias: lf.linear_epsilon(x, weight, bias, EPSILON),
        norm=lambda x, shape, weight, bias, eps: lf.layer_norm_grad_fn.apply(x, weight, bias, eps, EPSILON),
        add=lambda a, b: lf.add2(a, b, False, EPSILON),
        gelu=lambda x: identity(F.gelu, x),
        attend=lambda q, k, v: attend(q, k, v, matmul, softmax),
    )


def _efficient():
    """The rules and patches of ``lxt.efficient``."""
    import importlib

    import lxt

    package = ModuleType("lxt.efficient")
    package.__path__ = [str(Path(lxt.__file__).parent / "efficient")]
    with mock.patch.dict(sys.modules, {"lxt.efficient": package}):
        return tuple(importlib.import_module(f"lxt.efficient.{name}") for name in ("rules", "patches"))


def efficient():
    """The operations of AttnLRP as LXT patches them."""
    rules, patches = _efficient()
    attention = patches.wrap_attention_forward(lambda module, q, k, v: attend(q, k, v))

    def norm(x, shape, weight, bias, eps):
        return patches.layer_norm_forward(SimpleNamespace(weight=weight, bias=bias, eps=eps), x)

    return SimpleNamespace(
        linear=F.linear, add=torch.add, norm=norm, gelu=lambda x: rules.identity_rule_implicit(F.gelu, x),
        attend=lambda q, k, v: attention(None, q, k, v),
    )  # fmt: skip


def relevance_of(model, x, inside, *, times_input):
    """The relevance of the input, and of the tokens that enter ``inside``, for a class that starts with one."""
    entered = []
    handle = model.get_submodule(inside).register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    leaf = x.clone().requires_grad_()
    score = model(leaf)[:, TARGET]
    handle.remove()
    # A gradient times its input is relevance that starts with the score; it is made to start with one.
    start = 1 / score.detach() if times_input else torch.ones_like(score)
    found = torch.autograd.grad(score, [leaf, entered[0]], start)
    factors = [leaf, entered[0]] if times_input else [1, 1]
    return {name: (f * g).detach() for name, f, g in zip(("input", "tokens"), factors, found, strict=True)}


def attn_lrp(*, positions, form):
    """AttnLRP of the tiny transformer, in LXT's explicit or efficient form."""
    operations = {"explicit": explicit, "efficient": efficient}[form]()
    model = make(TinyViT(operations), positions=positions)
    return relevance_of(model, images(), "blocks", times_input=form == "efficient")


def cp_lrp(*, positions):
    """CP-LRP of torchvision's vision transformer, patched as LXT's map for it says."""
    _, patches = _efficient()
    model = make(torchvision_vit(), positions=positions)
    with ExitStack() as stack:
        for module, forward in (
            (nn.GELU, patches.non_linear_forward), (nn.LayerNorm, patches.layer_norm_forward),
            (nn.MultiheadAttention, patches.cp_multi_head_attention_forward),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(module, "original_forward", module.forward, create=True))
            stack.enter_context(mock.patch.object(module, "forward", forward))
        return relevance_of(model, images(), "encoder.layers", times_input=True)


RUNS = {
    **{f"attnlrp {form}": partial(attn_lrp, form=form) for form in ("explicit", "efficient")},
    "cp_lrp efficient": cp_lrp,
}
"""What is compared, by preset and form; each takes ``positions=``."""

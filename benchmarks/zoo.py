"""The models of the sweep, by zoo."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.subjects import BATCH, Subject, class_map, magnitude, next_token, noise, usable

TIMM_SMALLEST = Path(__file__).parent / "timm_smallest.json"


@dataclass(frozen=True)
class Zoo:
    """A collection of models.

    Attributes:
        members: the names, each with its group (its family, or its task).
        load: a name's subject, in float32.
    """

    members: Callable[[], dict[str, str]]
    load: Callable[[str], Subject]


# torchvision -------------------------------------------------------------------------------------

# The longest that fits is the family.
FAMILIES = (
    "alexnet", "convnext", "densenet", "efficientnet", "efficientnet_v2", "googlenet", "inception", "maxvit", "mnasnet",
    "mobilenet_v2", "mobilenet_v3", "regnet_x", "regnet_y", "resnet", "resnext", "shufflenet", "squeezenet", "swin",
    "swin_v2", "vgg", "vit", "wide_resnet",
)  # fmt: skip


def _classifiers() -> dict[str, str]:
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    return {name: _family(name) for name in names}


def _family(name: str) -> str:
    if name.startswith("vgg"):
        return "vgg_bn" if name.endswith("_bn") else "vgg"
    return max((family for family in FAMILIES if name.startswith(family)), key=len)


def smallest_classifiers() -> dict[str, str]:
    """The smallest of each torchvision family, with its family."""
    import torchvision

    def size(name: str) -> int:
        return int(torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"])

    smallest: dict[str, str] = {}
    for name, family in _classifiers().items():
        if family not in smallest or size(name) < size(smallest[family]):
            smallest[family] = name
    return {name: family for family, name in smallest.items()}


def _classifier(name: str) -> Subject:
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    # The sizes of the weights where the architecture asks for them, 224 where any size will do.
    size = 299 if name == "inception_v3" else 256 if name.startswith("swin_v2") else 224
    return Subject(usable(_torchvision(name, **options), 3, size, size), (noise(3, size, size),))


def _segmenter(name: str) -> Subject:
    options = {} if name.startswith("lraspp") else {"aux_loss": True}
    model = _torchvision(name, weights_backbone=None, **options)
    return Subject(usable(model, 3, 128, 128), (noise(3, 128, 128),), start=class_map, output="out")


def _video(name: str) -> Subject:
    # What takes any size gets a small one; MViT's positions and S3D's last pool are for 16 frames of 224 × 224.
    sizes = {"mvit": (16, 224, 224), "s3d": (16, 224, 224), "swin3d": (8, 112, 112)}
    shape = (3, *next((size for start, size in sizes.items() if name.startswith(start)), (8, 64, 64)))
    return Subject(usable(_torchvision(name), *shape), (noise(*shape),))


def _backbone(name: str) -> Subject:
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    size = 300 if name.startswith("ssd300") else 320 if name.startswith("ssdlite") else 224
    backbone: Any = usable(_torchvision(name, weights_backbone=None).backbone, 3, size, size)
    images = noise(3, size, size)
    with torch.no_grad():
        levels = list(backbone(images))
    # The level that most of the backbone leads to: a pyramid's first, otherwise the last.
    level = levels[0] if isinstance(backbone, BackboneWithFPN) else levels[-1]
    return Subject(backbone, (images,), start=magnitude, output=level)


def _torchvision(name: str, **options: Any) -> Any:
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, **options)


def _listed(task: str) -> Callable[[], dict[str, str]]:
    def members() -> dict[str, str]:
        import torchvision

        return dict.fromkeys(torchvision.models.list_models(module=getattr(torchvision.models, task)), task)

    return members


# timm --------------------------------------------------------------------------------------------


def _timm_members() -> dict[str, str]:
    return {entry["name"]: family for family, entry in json.loads(TIMM_SMALLEST.read_text()).items()}


def _timm(name: str) -> Subject:
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False)
    shape = tuple(model.default_cfg.get("input_size") or (3, 224, 224))
    return Subject(usable(model, *shape), (noise(*shape),))


# transformers ------------------------------------------------------------------------------------

LABELS = {"num_labels": 5}
LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {"vocab_size": 128, "max_position_embeddings": 64, **LAYERS}
SENTENCES = {**TEXT, **LABELS}
# Without a cache there is one output.
DECODER = {**TEXT, "num_key_value_heads": 2, "use_cache": False}
IMAGE = {"image_size": 32, "patch_size": 8, **LABELS, **LAYERS}

# By name: the task, the class, and a small configuration.
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("sentences", "BertForSequenceClassification", SENTENCES),
    "roberta": ("sentences", "RobertaForSequenceClassification", SENTENCES),
    "electra": ("sentences", "ElectraForSequenceClassification", {**SENTENCES, "embedding_size": 32}),
    "albert": ("sentences", "AlbertForSequenceClassification", {**SENTENCES, "embedding_size": 16}),
    "distilbert": (
        "sentences", "DistilBertForSequenceClassification",
        {"vocab_size": 128, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, **LABELS},
    ),
    "t5-encoder": (
        "features", "T5EncoderModel",
        {"vocab_size": 128, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    ),
    "gpt2": (
        "next token", "GPT2LMHeadModel",
        {
            "vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False,
            "bos_token_id": 0, "eos_token_id": 0,
        },
    ),
    "opt": (
        "next token", "OPTForCausalLM",
        {
            "vocab_size": 128, "max_position_embeddings": 64, "hidden_size": 32, "word_embed_proj_dim": 32,
            "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64, "use_cache": False,
        },
    ),
    "llama": ("next token", "LlamaForCausalLM", DECODER),
    "mistral": ("next token", "MistralForCausalLM", DECODER),
    "qwen2": ("next token", "Qwen2ForCausalLM", DECODER),
    "qwen3": ("next token", "Qwen3ForCausalLM", {**DECODER, "head_dim": 8}),
    "gemma": ("next token", "GemmaForCausalLM", {**DECODER, "head_dim": 8}),
    "vit": ("images", "ViTForImageClassification", IMAGE),
    "deit": ("images", "DeiTForImageClassification", IMAGE),
    "dinov2": ("images", "Dinov2ForImageClassification", IMAGE),
    "swin": (
        "images", "SwinForImageClassification",
        {
            "image_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 16, "depths": [2, 2],
            "num_heads": [2, 4], **LABELS,
        },
    ),
}  # fmt: skip


def _transformer(name: str) -> Subject:
    task, kind, options = TRANSFORMERS[name]
    built: Any = getattr(importlib.import_module("transformers"), kind)
    torch.manual_seed(0)
    model = usable(built(built.config_class(**options)))
    if task == "images":
        return Subject(model, keywords={"pixel_values": noise(3, 32, 32)}, output="logits")
    # The first few ids stand for padding and the like.
    ids = torch.randint(5, 128, (BATCH, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if task == "next token":
        return Subject(model, keywords={"input_ids": ids, "attention_mask": mask}, start=next_token, output="logits")
    mask[1, 9:] = 0  # a shorter sentence
    start, output = (magnitude, "last_hidden_state") if task == "features" else (None, "logits")
    return Subject(model, keywords={"input_ids": ids, "attention_mask": mask}, start=start, output=output)


def _transformer_members() -> dict[str, str]:
    return {name: task for name, (task, _, _) in TRANSFORMERS.items()}


ZOOS = {
    "torchvision": Zoo(_classifiers, _classifier),
    "torchvision-segmentation": Zoo(_listed("segmentation"), _segmenter),
    "torchvision-video": Zoo(_listed("video"), _video),
    "torchvision-detection": Zoo(_listed("detection"), _backbone),
    "timm": Zoo(_timm_members, _timm),
    "transformers": Zoo(_transformer_members, _transformer),
}

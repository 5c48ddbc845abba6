"""Data sets: every layout, every choice of images, and errors where something is missing."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from fxlrp.errors import DataError, ImageError, InputError
from fxlrp.evaluation import data
from fxlrp.evaluation.data import Sample, choose, half
from fxlrp.evaluation.evaluated_image import Normalization, load_image


def picture(path, value=128, size=(10, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value // 2, 255 - value)).save(path)
    return path


def write_cub(root, classes=4, training=5, testing=3):
    """A tiny set in the layout of CUB-200-2011."""
    images, labels, split = [], [], []
    number = 0
    for c in range(classes):
        for i in range(training + testing):
            number += 1
            name = f"{c + 1:03d}.Bird_{c}/Bird_{c}_{i:04d}.jpg"
            picture(root / "images" / name, value=40 * c + i)
            images.append(f"{number} {name}")
            labels.append(f"{number} {c + 1}")
            split.append(f"{number} {int(i < training)}")
    for name, lines in (("images", images), ("image_class_labels", labels), ("train_test_split", split)):
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def test_a_folder_per_class_gives_labels(tmp_path):
    for name in ("b/2.png", "a/1.jpg", "a/3.PNG", "b/notes.txt", "c/4.bmp"):
        path = tmp_path / name
        if path.suffix == ".txt":
            path.write_text("no image")
        else:
            picture(path)
    samples = data.image_folder(tmp_path)
    assert [(s.index, s.name, s.label) for s in samples] == [
        (0, "a/1.jpg", 0), (1, "a/3.PNG", 0), (2, "b/2.png", 1), (3, "c/4.bmp", 2)
    ]  # fmt: skip
    assert samples[0].read().size == (10, 8)


def test_labels_come_from_the_order_or_a_file_or_are_unknown(tmp_path):
    for name in ("x.png", "y.png", "z.png"):
        picture(tmp_path / name)
    assert [s.label for s in data.image_folder(tmp_path, "order")] == [0, 1, 2]
    assert [s.label for s in data.image_folder(tmp_path, "none")] == [None] * 3
    (tmp_path / "labels.csv").write_text("z.png,7\nx.png,3\n")
    assert [(s.name, s.label) for s in data.image_folder(tmp_path, "labels.csv")] == [("z.png", 7), ("x.png", 3)]
    (tmp_path / "labels.csv").write_text("z.png,7\nx.png;3\n")
    with pytest.raises(DataError, match=r"labels\.csv, line 2: expected 'file,label'"):
        data.image_folder(tmp_path, "labels.csv")


def test_a_folder_in_another_layout_is_an_error(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        data.image_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no folder for each class"):
        data.image_folder(tmp_path)
    with pytest.raises(DataError, match="holds no images"):
        data.image_folder(tmp_path, "order")
    with pytest.raises(DataError, match="none of folders, order, none, and no file"):
        data.image_folder(tmp_path, "lables.csv")


def test_imagenet_has_a_thousand_folders(tmp_path):
    for i in range(1000):
        (tmp_path / "val" / f"n{i:08d}").mkdir(parents=True)
    picture(tmp_path / "val" / "n00000007" / "one.JPEG")
    picture(tmp_path / "val" / "n00000999" / "two.JPEG")
    assert [(s.name, s.label) for s in data.imagenet(tmp_path)] == [
        ("n00000007/one.JPEG", 7), ("n00000999/two.JPEG", 999)
    ]  # fmt: skip
    (tmp_path / "val" / "n00000000").rmdir()
    with pytest.raises(DataError, match="folders for 999 classes, not for 1,000"):
        data.imagenet(tmp_path)


def test_cub_is_read_in_its_own_layout(tmp_path):
    root = write_cub(tmp_path)
    test = data.cub(root)
    assert len(test) == 12
    assert {s.label for s in test} == {0, 1, 2, 3}
    assert all(int(s.name[-8:-4]) >= 5 for s in test)
    train, validation = (data.cub(root, split, seed=3, validation=4) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (16, 4)
    assert [s.label for s in validation] == [0, 1, 2, 3]
    assert not {s.index for s in train} & {s.index for s in validation}
    assert {s.index for s in data.cub(root, "validation", seed=3, validation=4)} == {s.index for s in validation}
    assert {s.index for s in data.cub(root, "validation", seed=4, validation=4)} != {s.index for s in validation}


def test_cub_with_missing_files_is_an_error(tmp_path):
    root = write_cub(tmp_path)
    with pytest.raises(DataError, match="choose test, train or validation"):
        data.cub(root, "val")
    with pytest.raises(DataError, match="leaves none beside 600 for validation"):
        data.cub(root, "train")
    (root / "image_class_labels.txt").write_text("1 1\n")
    with pytest.raises(DataError, match="name different images"):
        data.cub(root)
    (root / "images.txt").unlink()
    with pytest.raises(DataError, match=r"images\.txt cannot be read"):
        data.cub(root)


def test_an_npz_file_gives_images_and_labels(tmp_path):
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([4, 2]))
    samples = data.arrays(tmp_path / "a.npz")
    assert [(s.index, s.name, s.label) for s in samples] == [(0, "0", 4), (1, "1", 2)]
    assert (np.asarray(samples[1].read()) == images[1]).all()
    np.savez(tmp_path / "b.npz", images=images)
    assert [s.label for s in data.arrays(tmp_path / "b.npz")] == [None, None]
    for name, content, message in (
        ("c.npz", {"pictures": images}, "cannot be read as an npz file with 'images'"),
        ("d.npz", {"images": images.astype(float)}, "must be uint8"),
        ("e.npz", {"images": images, "labels": np.zeros(3)}, "2 images and labels of shape"),
    ):
        np.savez(tmp_path / name, **content)
        with pytest.raises(DataError, match=message):
            data.arrays(tmp_path / name)
    with pytest.raises(DataError, match="cannot be read"):
        data.arrays(tmp_path / "nowhere.npz")


# Which of them --------------------------------------------------------------------------------------


def samples(*labels):
    return [Sample(i, str(i), label, lambda: None) for i, label in enumerate(labels)]


def test_each_class_gives_the_same_number_of_images():
    given = samples(*[0] * 5, *[1] * 6, *[2] * 7)
    for seed in range(3):
        chosen = choose(given, per_class=2, seed=seed)
        assert [s.label for s in chosen] == [0, 0, 1, 1, 2, 2]
        assert choose(given, count=6, seed=seed) == choose(given, count=6, seed=seed)
    assert sorted(choose(given, count=7), key=lambda s: s.index) == choose(given, count=7)
    assert sorted(map([s.label for s in choose(given, count=8)].count, range(3))) == [2, 3, 3]
    assert choose(given, per_class=2, seed=0) != choose(given, per_class=2, seed=1)
    assert choose(given) == given


def test_too_few_images_are_an_error():
    given = samples(0, 0, 1)
    with pytest.raises(DataError, match="2 images of class 1 are wanted, and there are 1"):
        choose(given, per_class=2)
    with pytest.raises(DataError, match="not both"):
        choose(given, per_class=1, count=1)
    with pytest.raises(DataError, match="no image is left"):
        choose([], count=0)
    with pytest.raises(DataError, match="4 images are wanted, and there are 3"):
        choose(samples(None, None, None), count=4)


def test_halves_share_nothing_and_have_the_classes_in_common():
    given = samples(*[0] * 4, *[1] * 5, *[2] * 3)
    first, second = half(given, "development", 1), half(given, "confirmation", 1)
    assert sorted(s.index for s in (*first, *second)) == list(range(12))
    assert len(first) == len(second) == 6
    assert {s.label for s in first} == {s.label for s in second} == {0, 1, 2}
    with pytest.raises(DataError, match="development or confirmation"):
        half(given, "test")


# As a model takes them ------------------------------------------------------------------------------


def test_an_image_is_between_0_and_1_and_its_normalisation_is_measured(tmp_path):
    order = np.random.default_rng(0)
    Image.fromarray(order.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    preprocess = transforms.Compose(
        [transforms.Resize(20), transforms.CenterCrop(16), transforms.ToTensor(),
         transforms.Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.25])]
    )  # fmt: skip
    (sample,) = data.image_folder(tmp_path, "none")
    item = load_image(sample, preprocess)
    assert item.image.shape == (1, 3, 16, 16)
    assert 0 <= item.image.min() <= item.image.max() <= 1
    assert torch.allclose(item.input[0], preprocess(sample.read()), atol=1e-5)
    grey = item.normalize(torch.full((1, 3, 16, 16), 0.5))
    assert torch.allclose(grey[0, :, 0, 0], torch.tensor([0.5, 0.0, -0.4]), atol=1e-6)


def test_preprocessing_that_cannot_be_undone_is_an_error():
    with pytest.raises(InputError, match="cannot be undone"):
        Normalization(lambda image: transforms.functional.to_tensor(image) * 0, (4, 4))


def test_an_unreadable_image_is_an_error(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (sample,) = data.image_folder(tmp_path, "none")
    with pytest.raises(ImageError, match=r"broken\.jpg is not an image"):
        load_image(sample, transforms.ToTensor())

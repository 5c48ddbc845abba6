"""The example that trains for an evaluation, on tiny sets in the layouts of the real ones."""

import json

import numpy as np
import pytest
import torch
from test_evaluation_data import write_cub

from examples.train_cub import Recipe, Training, build, load_samples, loaders
from fxlrp.errors import DataError

RECIPE = Recipe(model="resnet18", size=32, batch_size=4, validation=4, epochs=3)


def trained(folder, out, recipe=RECIPE):
    train, validation, classes = loaders(folder, recipe, workers=0)
    out.mkdir(exist_ok=True)
    training = Training(build(recipe, classes, None), recipe, out, torch.device("cpu"))
    training.resume()
    training.run(train, validation)
    return training


def test_the_recipe_is_the_papers():
    recipe = Recipe()
    assert (recipe.model, recipe.size, recipe.batch_size, recipe.patience) == ("resnet50", 224, 32, 6)
    assert (recipe.learning_rate, recipe.momentum, recipe.weight_decay, recipe.decay_every) == (1e-3, 0.9, 1e-4, 30)
    training = Training(torch.nn.Linear(2, 2), recipe, None, torch.device("cpu"))
    rates = []
    for _ in range(61):
        rates.append(training.optimizer.param_groups[0]["lr"])
        training.optimizer.step()
        training.schedule.step()
    assert rates[29] == pytest.approx(1e-3)
    assert rates[30] == pytest.approx(1e-4)
    assert rates[60] == pytest.approx(1e-5)


def test_training_leaves_checkpoints_and_a_log(tmp_path):
    root = write_cub(tmp_path / "cub")
    training = trained(root, tmp_path / "out")
    assert training.epoch == 3
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert min(line["validation_loss"] for line in lines) == training.best
    best = torch.load(tmp_path / "out" / "best.pt", weights_only=True)
    assert best["fc.weight"].shape == (4, 512)


@pytest.mark.slow
def test_a_training_that_was_stopped_goes_on_as_if_it_were_not(tmp_path):
    root = write_cub(tmp_path / "cub")
    whole = trained(root, tmp_path / "whole")
    train, validation, classes = loaders(root, RECIPE, workers=0)
    (tmp_path / "out").mkdir()
    first = Training(build(RECIPE, classes, None), RECIPE, tmp_path / "out", torch.device("cpu"))
    save = first._save

    def stop(improved):
        save(improved)
        if first.epoch == 2:
            raise KeyboardInterrupt

    first._save = stop
    with pytest.raises(KeyboardInterrupt):
        first.run(train, validation)
    second = trained(root, tmp_path / "out")
    assert second.epoch == 3
    for name, value in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value), name


def test_training_stops_where_nothing_is_gained(tmp_path):
    training = Training(torch.nn.Linear(2, 2), Recipe(patience=2, epochs=50), tmp_path, torch.device("cpu"))
    losses = iter([3.0, 2.0, 2.5, 2.1, 1.0])
    training._train = lambda batches: 0.0
    training.validate = lambda batches: (next(losses), 0.5)
    training.run(None, None)
    assert (training.epoch, training.best) == (4, 2.0)


def test_another_recipe_does_not_take_up_a_training(tmp_path):
    training = Training(torch.nn.Linear(2, 2), Recipe(), tmp_path, torch.device("cpu"))
    training._save(improved=True)
    other = Training(torch.nn.Linear(2, 2), Recipe(seed=1), tmp_path, torch.device("cpu"))
    with pytest.raises(DataError, match="of another training"):
        other.resume()


def test_arrays_are_split_by_seed(tmp_path):
    images = np.zeros((40, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(40) % 4)
    train, validation = load_samples(tmp_path / "a.npz", Recipe())
    assert (len(train), len(validation)) == (36, 4)
    assert sorted(s.label for s in validation) == [0, 1, 2, 3]
    np.savez(tmp_path / "b.npz", images=images)
    with pytest.raises(DataError, match="has no labels"):
        load_samples(tmp_path / "b.npz", Recipe())


def test_weights_of_other_classes_lend_all_but_the_last_layer(tmp_path):
    given = build(Recipe(model="resnet18"), 7, None)
    with torch.no_grad():
        given.conv1.weight.fill_(0.5)
    torch.save(given.state_dict(), tmp_path / "w.pt")
    made = build(Recipe(model="resnet18"), 4, tmp_path / "w.pt")
    assert (made.conv1.weight == 0.5).all()
    assert made.fc.weight.shape == (4, 512)

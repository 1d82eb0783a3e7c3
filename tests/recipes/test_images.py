"""Images of a recipe's generator."""

import pytest
import torch

from gdfq.models import Generator
from gdfq.recipes import load_recipe
from gdfq.recipes.images import class_images, images_in_turn, random_images
from gdfq.training.parts.low_pass import LowPassFilter

WAYS = {
    "by class": lambda recipe, generator: class_images(recipe, generator, 10, 3).flatten(0, 1),
    "at random": lambda recipe, generator: random_images(
        recipe, generator, 10, 20, torch.Generator().manual_seed(1)
    ),
    "in turn": lambda recipe, generator: torch.cat(list(images_in_turn(recipe, generator, 10, 20))),
}


@pytest.mark.parametrize("way", WAYS)
def test_images_pass_the_recipe_s_low_pass_filter(way):
    torch.manual_seed(0)
    generator = Generator(10, 8, latent_dim=5, width=4, channels=1)
    recipe = load_recipe("fashion-mnist-resnet20").with_options({"batch_size": 16})
    plain, filtered = (
        WAYS[way](r, generator) for r in (recipe, recipe.with_options({"low_pass": 2.0}))
    )
    assert len(plain) in (20, 30)
    torch.testing.assert_close(filtered, LowPassFilter((8, 8), 2.0)(plain))
    assert not torch.allclose(filtered, plain, atol=1e-2)

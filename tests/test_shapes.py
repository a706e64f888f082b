"""That the shapes in annotations are checked at all while the tests run."""

import pytest
import torch
from jaxtyping import TypeCheckError

from contentmotion import MotionDiT
from contentmotion.diffusion import expand_to
from contentmotion.models.layers import Attention


def test_a_wrong_number_of_axes_raises() -> None:
    with pytest.raises(TypeCheckError, match=r"checking the parameters of contentmotion.models.layers.Attention.forw"):
        Attention(8, num_heads=2)(torch.zeros(3, 8))
    with pytest.raises(TypeCheckError, match=r"checking the parameters of contentmotion.diffusion.expand_to"):
        expand_to(torch.tensor(0.5), torch.zeros(2, 3))


def test_axes_of_one_name_have_one_length() -> None:
    model = MotionDiT(motion_channels=3, content_channels=4, hidden_size=16, depth=1, num_heads=2, num_classes=3)
    motion, content = torch.zeros(2, 3, 4, 8), torch.zeros(2, 4, 8, 8)
    assert model(motion, torch.tensor([1, 2]), content, class_labels=torch.tensor([0, 1])).shape == motion.shape
    with pytest.raises(TypeCheckError, match=r"'timesteps'"):
        model(motion, torch.tensor([1]), content, class_labels=torch.tensor([0, 1]))


def test_a_wrong_result_raises() -> None:
    layer = Attention(8, num_heads=2)
    layer.proj = torch.nn.Linear(8, 6)
    with pytest.raises(TypeCheckError, match=r"checking the return value of contentmotion.models.layers.Attention"):
        layer(torch.zeros(1, 3, 8))

"""Nobody notices that a model was used in between."""

import random

import numpy as np
import pytest
import torch

from refusaldir.models.undisturbed import undisturbed


def test_modes_and_random_states_are_left_as_they_were():
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Sequential(torch.nn.Dropout()))
    model.train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    with pytest.raises(ZeroDivisionError), undisturbed(model):
        assert not any(module.training for module in model.modules())
        torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == modes
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert torch.equal(states[0], after[0]) and states[1:] == after[1:]

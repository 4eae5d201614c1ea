"""What is kept for the backward pass, on a GPU of made-up numbers."""

import pytest
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from workbench.config.options import RunConfig
from workbench.train.fast import memory_plan
from workbench.train.fast.compiler_cache import Need
from workbench.train.fast.memory_plan import MemoryPlan

GIB = 2**30


class Layer(GradientCheckpointingLayer):
    pass


class Store:
    active, stored_bytes = True, 0


@pytest.fixture
def planned(monkeypatch):
    """Applies a plan for 10 layers on a card of so many GiB, of which 4 are taken; `(layers kept, plan, store)`."""
    kept = []
    monkeypatch.setattr(memory_plan, "keep_layers", lambda model, count, store: kept.append(count))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 4 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 4 * GIB)

    def planned(gib: float, need: Need, **options):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int((gib - 4) * GIB), 0))
        kept.clear()
        store = Store()
        plan = MemoryPlan(RunConfig(**options), nn.Sequential(*[Layer() for _ in range(10)]), store, Store())
        plan.apply(need, to_come=0)
        return (kept[-1] if kept else 0), plan, store

    return planned


NEED = Need(standing=0, step=2 * GIB, stored=GIB, kept=GIB)


def test_layers_that_fit_are_kept(planned):
    # 10 GiB less 4 % are 9.6; 4 + 2 are taken and 1 stored. Each further layer takes its 1 GiB less what it had stored.
    assert planned(10, NEED)[0] == 1 + int(2.6 / (1 - 1 / 9))
    assert planned(80, NEED)[0] == 10
    assert planned(10, NEED, max_gpu_memory=8.4)[0] == 1 + int(1.0 / (1 - 1 / 9))


def test_what_is_stored_goes_to_the_host_where_the_card_is_small(planned):
    kept, _, store = planned(6.5, NEED)
    assert kept == 0 and store.active
    kept, _, store = planned(80, NEED, activation_memory="least")
    assert kept == 0 and store.active
    assert not planned(80, NEED)[2].active


def test_lacking_is_the_share_that_is_not_there(planned):
    _, plan, _ = planned(6.2, NEED)  # 5.8 after the margin: 1.8 of the 2.4 that a recorded step needs
    assert plan.lacking(NEED, to_come=0) == pytest.approx(0.25)
    assert plan.lacking(NEED, to_come=int(0.6 * GIB)) == pytest.approx(0.5)
    assert planned(10, NEED)[1].lacking(NEED, to_come=0) == 0

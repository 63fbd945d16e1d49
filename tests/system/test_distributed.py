"""What several processes agree on, with two of them played in one."""

import pickle

import pytest
import torch

from vitlab.config.errors import Locked
from vitlab.system.distributed import Distributed


class Unpicklable(Exception):
    def __reduce__(self):
        raise TypeError("it stays in its process")


@pytest.mark.parametrize(
    ("raised", "elsewhere"), [(Locked("runs/a is taken"), Locked), (Unpicklable("stray"), RuntimeError)]
)
def test_what_rank_0_raises_is_raised_by_every_rank(raised, elsewhere, monkeypatch):
    sent = []

    def broadcast(self, value):
        if self.is_rank0:
            sent.append(pickle.dumps(value))
        return value if self.is_rank0 else pickle.loads(sent[0])

    def question():
        raise raised

    monkeypatch.setattr(Distributed, "broadcast", broadcast)
    with pytest.raises(type(raised)) as first:
        Distributed(0, 2, torch.device("cpu")).run_on_rank0(question)
    with pytest.raises(elsewhere, match=str(raised)):
        Distributed(1, 2, torch.device("cpu")).run_on_rank0(question)
    assert first.value is raised

"""What bitsandbytes would compile as it is imported is compiled when it is called."""

import torch

from workbench.models.quantized.bnb import compiled_when_called


def test_a_function_is_compiled_once_when_it_is_called_first(monkeypatch):
    asked = []

    def compile_now(function, **options):
        asked.append((function.__name__, options))
        return lambda x: function(x) + 100

    monkeypatch.setattr(torch, "compile", compile_now)
    with compiled_when_called():

        @torch.compile(dynamic=False)
        def double(x):
            """Twice x."""
            return 2 * x

        half = torch.compile(lambda x: x / 2)
    assert torch.compile is compile_now
    assert not asked and double.__doc__ == "Twice x."
    assert [double(1), double(2)] == [102, 104]
    assert asked == [("double", {"dynamic": False})]
    assert half(4) == 102


def test_it_is_put_back_after_an_error():
    before = torch.compile
    try:
        with compiled_when_called():
            raise KeyError
    except KeyError:
        assert torch.compile is before

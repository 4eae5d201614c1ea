"""8-bit layers whose input has four dimensions, as latent attention gives it."""

import bitsandbytes as bnb
import torch

from workbench.models.eight_bit import take_any_shape


def test_inputs_of_four_dimensions_reach_bitsandbytes_as_rows(monkeypatch):
    torch.manual_seed(0)
    layer = bnb.nn.Linear8bitLt(64, 32, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.weight = bnb.nn.Int8Params(torch.randn(32, 64), requires_grad=False, has_fp16_weights=False)
    layer = layer.to("cpu")
    x = torch.randn(2, 1, 5, 64)
    x[..., 3] = 20  # an outlier, which bitsandbytes takes out of the 8-bit product
    want = layer(x[:, 0])
    shapes = []
    forward = bnb.nn.Linear8bitLt.forward
    monkeypatch.setattr(bnb.nn.Linear8bitLt, "forward", lambda self, a: shapes.append(a.shape) or forward(self, a))
    assert take_any_shape(torch.nn.Sequential(layer)) == 1 and take_any_shape(layer) == 0
    found = layer(x)
    assert shapes == [(10, 64)] and found.shape == (2, 1, 5, 32)
    assert torch.equal(found[:, 0], want)
    assert layer(x[:, 0]).shape == (2, 5, 32)

"""The rearranged forward pass against MONAI's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from MTMed3DCore.networks import MultiTaskNetwork, build_network
from MTMed3DCore.networks.fast import encode
from MTMed3DCore.networks.fast.decoder import FusedSegmentation
from MTMed3DCore.networks.fast.token_order import token_order

SHAPES = ((64, 64, 64), (32, 64, 96), (96, 64, 64))


def network(preset: str = "mtmed3d") -> MultiTaskNetwork:
    """A network whose position biases are large enough to matter."""
    torch.manual_seed(4)
    made = build_network(preset, 12).eval()
    for name, parameter in made.encoder.named_parameters():
        if name.endswith("relative_position_bias_table"):
            torch.nn.init.normal_(parameter, std=0.5)
    return made


def image(shape: tuple[int, int, int], batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 4, *shape, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("preset", ["mtmed3d", "published"])
def test_gathered_windows_give_monais_numbers_at_every_level(shape, preset):
    encoder = network(preset).encoder
    with torch.no_grad():
        for ours, theirs in zip(encode(encoder, image(shape)), encoder(image(shape)), strict=True):
            assert float((ours - theirs).abs().max()) <= 1e-5


def test_a_batch_gives_what_its_images_give_alone():
    encoder = network().encoder
    batch = image((64, 64, 64), 2)
    with torch.no_grad():
        together = encode(encoder, batch)
        alone = [encode(encoder, each[None]) for each in batch]
    for level, maps in enumerate(together):
        for index, single in enumerate(alone):
            assert float((maps[index] - single[level][0]).abs().max()) <= 1e-5


def test_gradients_equal_monais_also_after_inference_made_the_tables():
    made = network()
    with torch.inference_mode():
        encode(made.encoder, image((64, 64, 64)))
    gradients = []
    for forward in (made.encoder, lambda x: encode(made.encoder, x)):
        made.zero_grad()
        sum((level**3).mean() for level in forward(image((64, 64, 64)))).backward()
        gradients.append([p.grad.clone() for p in made.encoder.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 100
    for theirs, ours in zip(*gradients, strict=True):
        assert float((ours - theirs).abs().max()) <= 1e-4 * float(theirs.abs().max()) + 1e-9


def test_changed_weights_are_used_although_biases_are_kept():
    encoder = network().encoder
    with torch.no_grad():
        before = encode(encoder, image((64, 64, 64)))[1]
        for name, parameter in encoder.named_parameters():
            if name.endswith("relative_position_bias_table"):
                parameter.mul_(-1.0)
        after = encode(encoder, image((64, 64, 64)))[1]
        expected = encoder(image((64, 64, 64)))[1]
    assert float((after - before).abs().max()) > 1e-3
    assert float((after - expected).abs().max()) <= 1e-5


def test_windows_hold_every_token_once_and_masks_part_what_the_roll_brought_together():
    shape, window, shift = (9, 5, 16), (7, 7, 7), (3, 3, 3)
    order = token_order(shape, window, shift, torch.device("cpu"))
    assert order.windows == 2 * 1 * 3
    assert order.per_window == 7 * 5 * 7
    index = order.index.numpy()
    assert sorted(index[index < np.prod(shape)]) == list(range(np.prod(shape)))
    assert (index[order.inverse.numpy()] == np.arange(np.prod(shape))).all()
    first = 0
    for count, mask in order.kinds:
        for places in index[first * order.per_window : (first + count) * order.per_window].reshape(count, -1):
            real = places < np.prod(shape)
            where = np.array(np.unravel_index(places[real], shape)).T
            span = np.abs(where[:, None] - where[None]).max(axis=2)
            apart = np.zeros_like(span, dtype=bool) if mask is None else (mask.numpy() != 0)[np.ix_(real, real)]
            assert ((span >= 7) <= apart).all()
        first += count


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_the_decoder_multiplied_out_gives_the_decoders_logits(shape):
    made = network()
    with torch.no_grad():
        features = made.encode(image(shape))
        decoder = made.segmentation_decoder
        expected = decoder(image(shape), features)
        fused = FusedSegmentation(decoder)(decoder, image(shape), features)
    assert float(expected.abs().max()) > 1
    assert float((fused - expected).abs().max()) <= 2e-5


def test_fused_weights_are_used_without_gradients_only_and_never_go_stale():
    made = network()
    x = image((64, 64, 64))
    plain = made(x).segmentation.detach()
    made.multiply_out()
    with torch.no_grad():
        assert float((made(x).segmentation - plain).abs().max()) <= 2e-5
    made(x).segmentation.sum().backward()
    assert all(p.grad is not None for p in made.segmentation_decoder.parameters())
    made.load_state_dict({k: v * 0.5 if v.is_floating_point() else v for k, v in made.state_dict().items()})
    assert made.segmentation_decoder.fused is None
    made.multiply_out()
    assert made.train().segmentation_decoder.fused is None

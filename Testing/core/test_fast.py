"""The rearranged forward pass against MONAI's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from MTMed3DCore.networks import MultiTaskNetwork, build_network
from MTMed3DCore.networks.fast import encode, rows, swin, winograd
from MTMed3DCore.networks.fast.decoder import FusedSegmentation, finish
from MTMed3DCore.networks.fast.rows import Shortcut
from MTMed3DCore.networks.fast.token_order import axis_runs, token_order

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


@pytest.mark.parametrize("batch", [1, 2])
def test_boxes_and_tokens_taken_in_small_chunks_give_the_same_numbers(monkeypatch, batch):
    encoder, x = network().encoder, image((64, 64, 96), batch)
    with torch.no_grad():
        at_once = encode(encoder, x)
        monkeypatch.setattr(swin, "CACHED_BYTES", 2**16)
        for ours, theirs in zip(encode(encoder, x), at_once, strict=True):
            assert float((ours - theirs).abs().max()) <= 1e-5


def test_biases_belong_to_an_order_and_not_to_its_place_in_memory():
    """An order that is forgotten leaves its place in memory to the next one."""
    attention = network().encoder.layers1[0].blocks[0].attn
    first, second = (token_order(shape, (7, 7, 7), (0, 0, 0), torch.device("cpu")) for shape in ((16, 7, 7), (7, 7, 5)))
    with torch.no_grad():
        swin._biases(attention, first, torch.float32)
        found = swin._biases(attention, replace(second, index=first.index), torch.float32)
        expected = swin._make_biases(attention, second, torch.float32)
    assert [each.shape for each in found] == [each.shape for each in expected]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


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


def test_boxes_hold_every_token_once_and_only_neighbours_of_one_window():
    shape, window, shift = (9, 5, 16), (7, 7, 7), (3, 3, 3)
    order = token_order(shape, window, shift, torch.device("cpu"))
    index = order.index.numpy()
    assert sorted(index) == list(range(np.prod(shape)))
    assert (index[order.inverse.numpy()] == np.arange(np.prod(shape))).all()
    # Shifted by three, nine tokens make runs of 6 and 3, sixteen of 7, 6 and 3; five are one window.
    assert sorted(len(kind.places) for kind in order.kinds) == sorted(a * 5 * b for a in (6, 3) for b in (7, 6, 3))
    first = 0
    for kind in order.kinds:
        count = kind.count * len(kind.places)
        for box in index[first : first + count].reshape(kind.count, -1):
            where = np.array(np.unravel_index(box, shape)).T
            assert (where.max(axis=0) - where.min(axis=0) < 7).all()
            assert len(box) == np.prod(where.max(axis=0) - where.min(axis=0) + 1)
        first += count


@pytest.mark.parametrize(
    ("length", "step", "expected"),
    [
        (14, 0, [(0, 7, 0, 0), (7, 7, 0, 0)]),
        (12, 0, [(0, 7, 0, 0), (7, 5, 2, 0)]),
        (12, 3, [(3, 7, 0, 0), (10, 2, 2, 0), (0, 3, 0, 4)]),
        (8, 3, [(3, 5, 2, 0), (0, 3, 0, 4)]),
    ],
)
def test_runs_of_an_axis_count_tokens_padding_and_the_place_in_the_window(length, step, expected):
    assert [(run.first, run.tokens, run.padding, run.place) for run in axis_runs(length, 7, step)] == expected


@pytest.mark.parametrize("shape", [(4, 4, 1), (12, 8, 7), (8, 20, 32)])
def test_winograd_gives_the_direct_convolution_of_maps_that_lie_voxel_by_voxel(shape):
    random = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(32, 24, 3, 3, 3, generator=random), torch.randn(32, generator=random)
    x = torch.randn(1, 24, *shape, generator=random)
    expected = torch.nn.functional.conv3d(x.double(), weight.double(), bias.double(), padding=1)
    lying = winograd.channels_last(x)
    assert torch.equal(lying, x)
    convolution = winograd.Convolution(weight, bias)
    for given in (lying, x):
        found = convolution(given)
        assert (winograd.voxels_of(found) is not None) == (given is lying)
        assert float((found - expected).abs().max()) <= 2e-6 * float(expected.abs().max())


def test_maps_that_winograd_cannot_take_are_convolved_directly_and_stay_as_they_lie(monkeypatch):
    monkeypatch.setattr(winograd, "_filtered", lambda *_: pytest.fail("not for this map"))
    random = torch.Generator().manual_seed(1)
    for inputs, shape, batch in ((24, (6, 8, 5), 1), (24, (8, 6, 5), 1), (4, (8, 8, 5), 1), (24, (8, 8, 5), 2)):
        weight = torch.randn(24, inputs, 3, 3, 3, generator=random)
        x = torch.randn(batch, inputs, *shape, generator=random)
        found = winograd.Convolution(weight)(winograd.channels_last(x))
        assert batch > 1 or winograd.voxels_of(found) is not None
        assert float((found - torch.nn.functional.conv3d(x, weight, padding=1)).abs().max()) <= 1e-4


@pytest.mark.parametrize(("channels", "shape"), [(3, (5, 7, 3)), (12, (6, 8, 8)), (48, (8, 8, 8)), (100, (3, 3, 3))])
def test_the_end_of_a_convolution_is_a_norm_a_sum_and_a_leaky_relu_chunk_by_chunk(monkeypatch, channels, shape):
    monkeypatch.setattr(rows, "CHUNK_BYTES", 2**12)
    random = torch.Generator().manual_seed(1)
    # A mean of a thousand standard deviations, and a channel that is constant.
    x = torch.randn(1, channels, *shape, generator=random) + 1000
    x[0, 0] = 3.0
    added = torch.randn(1, channels, *shape, generator=random)
    normal = torch.nn.functional.instance_norm(x.double())
    with_sum = torch.nn.functional.leaky_relu(normal + added, 0.01)
    for lie in (winograd.channels_last, torch.Tensor.clone):
        assert float((finish(lie(x), active=False) - normal).abs().max()) <= 1e-3
        assert float((finish(lie(x), Shortcut(lie(added))) - with_sum).abs().max()) <= 1e-3


@pytest.mark.parametrize("channels", [12, 48])
def test_a_shortcut_has_a_norm_of_its_own_behind_its_convolution_and_without_one(monkeypatch, channels):
    monkeypatch.setattr(rows, "CHUNK_BYTES", 2**12)
    random = torch.Generator().manual_seed(1)
    x, source = (torch.randn(1, count, 8, 6, 8, generator=random) * 3 + 7 for count in (channels, 4))
    matrix = torch.randn(channels, 4, generator=random)
    norm = torch.nn.functional.instance_norm
    mixed = torch.einsum("oi,bixyz->boxyz", matrix.double(), source.double())
    for lie in (winograd.channels_last, torch.Tensor.clone):
        found = finish(lie(x), Shortcut(lie(source), matrix))
        expected = torch.nn.functional.leaky_relu(norm(x.double()) + norm(mixed), 0.01)
        assert float((found - expected).abs().max()) <= 1e-5
        found = finish(lie(x), Shortcut(lie(x.flip(2)), normal=True))
        expected = torch.nn.functional.leaky_relu(norm(x.double()) + norm(x.flip(2).double()), 0.01)
        assert float((found - expected).abs().max()) <= 1e-5


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_the_decoder_multiplied_out_gives_the_decoders_logits(shape):
    made = network()
    with torch.no_grad():
        features = made.encode(image(shape))
        decoder = made.segmentation_decoder
        expected = decoder(image(shape), features)
        fused = FusedSegmentation(decoder)(image(shape), features)
    assert float(expected.abs().max()) > 1
    assert float((fused - expected).abs().max()) <= 2e-5


@pytest.mark.parametrize("shape", [(64, 64, 64), (96, 64, 64)])
def test_the_heads_with_quicker_convolutions_give_the_heads_scores_and_deltas(monkeypatch, shape):
    torch.manual_seed(4)
    made = build_network("mtmed3d", 24, num_anchors=2).eval()
    for name, parameter in made.detection_decoder.named_parameters():
        if "head" in name and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
        elif "head" in name:
            torch.nn.init.normal_(parameter, mean=0.3, std=0.3)
    by_winograd = []
    filtered = winograd._filtered
    monkeypatch.setattr(winograd, "_filtered", lambda *each: by_winograd.append(each) or filtered(*each))
    with torch.no_grad():
        features = made.encode(image(shape))
        expected = made.detect(features)
        made.multiply_out()
        found = made.detect(features)
    assert by_winograd, "the finest map has sides that Winograd can take"
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert float(b.abs().max()) > 0.3
            assert float((a - b).abs().max()) <= 1e-4


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

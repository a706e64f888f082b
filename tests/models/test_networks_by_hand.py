"""The networks against plain arithmetic, token by token: positions, planes, the order of patches, what is averaged."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, silu

from tiny import make_autoencoder, make_motion_dit


def angles(position: float, dim: int) -> list[float]:
    """Vaswani et al. 2017, section 3.5, the cosines first: DiT's order."""
    turns = [position / 10000 ** (k / (dim // 2)) for k in range(dim // 2)]
    return [math.cos(turn) for turn in turns] + [math.sin(turn) for turn in turns]


def place(row: int, column: int, dim: int) -> Tensor:
    """Half the channels say the row, half the column."""
    return torch.tensor(angles(row, dim // 2) + angles(column, dim // 2))


def project(convolution: torch.nn.Module, image: Tensor, row: int, column: int, side: int) -> Tensor:
    """One patch of an image (c, h, w) through a convolution whose stride is its size."""
    patch = image[:, side * row : side * (row + 1), side * column : side * (column + 1)]
    return convolution.weight.flatten(1) @ patch.flatten() + convolution.bias


def to_pixels(tokens: Tensor, channels: int) -> Tensor:
    """Tokens (H', W', 2 2 c) -> image (c, 2 H', 2 W'): a patch is row by row, its channels last."""
    image = torch.zeros(channels, 2 * tokens.shape[0], 2 * tokens.shape[1])
    for row, line in enumerate(tokens):
        for column, token in enumerate(line):
            image[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = token.view(2, 2, channels).permute(2, 0, 1)
    return image


@torch.no_grad()
@pytest.mark.parametrize("residual", [True, False])
def test_autoencoder(residual: bool) -> None:
    """CMD Eq. 3-6, one block each way (blocks by themselves are tested in test_autoencoder.py)."""
    model = make_autoencoder(0.3, residual_decoding=residual)
    t, rows, columns, d = 3, 2, 4, 16
    x = torch.randn(1, t, 3, 2 * rows, 2 * columns)
    u = torch.zeros(t, rows, columns, d)
    for f in range(t):
        for i in range(rows):
            for j in range(columns):
                token = project(model.patch_embed, x[0, f], i, j, 2)
                u[f, i, j] = token + torch.tensor(angles(f, d)) + place(i, j, d)
    u = model.encoder[0](u.view(1, t, rows * columns, d)).view(t, rows, columns, d)
    u = layer_norm(u, (d,), model.encoder_norm.weight, model.encoder_norm.bias)
    logits = torch.stack([to_pixels(model.content_head(frame), 3) for frame in u])
    share = logits.exp() / logits.exp().sum(0)
    content = (share * x[0]).sum(0)
    z_x = model.motion_head(u.sum(2) / columns)  # (t, H', D)
    z_y = model.motion_head(u.sum(1) / rows)
    encoded = model.encode(x)
    torch.testing.assert_close(encoded.weights[0], share, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoded.content[0], content, atol=1e-5, rtol=1e-4)
    z = torch.cat([z_x, z_y], dim=1).permute(2, 0, 1)  # (D, t, H' + W')
    torch.testing.assert_close(encoded.motion_latent[0], z, atol=1e-5, rtol=1e-4)
    v = torch.zeros(t, rows, columns, d)
    for f in range(t):
        for i in range(rows):
            for j in range(columns):
                v[f, i, j] = project(model.content_embed, content, i, j, 2)
                v[f, i, j] += model.motion_embed(z_x[f, i]) + model.motion_embed(z_y[f, j])
                v[f, i, j] += torch.tensor(angles(f, d)) + place(i, j, d)
    v = model.decoder[0](v.view(1, t, rows * columns, d)).view(t, rows, columns, d)
    v = layer_norm(v, (d,), model.decoder_norm.weight, model.decoder_norm.bias)
    frames = torch.stack([to_pixels(model.frame_head(frame), 3) for frame in v]) + residual * content
    torch.testing.assert_close(model.decode(content[None], z[None])[0], frames, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model(x)[0], frames, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("condition", ["text_dim", "num_classes"])
def test_motion_dit(condition: str) -> None:
    """The whole forward pass but for the blocks (test_motion_dit.py has those), on a frame that is not square."""
    model = make_motion_dit(0.2, depth=2, content_patch_size=4, learn_sigma=True, **{condition: 7})
    t, (h, w), d, time = 4, (8, 16), 16, 421
    rows, columns = h // 2, w // 2
    motion, content = torch.randn(2, t, rows + columns), torch.randn(3, h, w)
    tokens = []
    for plane, (z, convolution, side) in enumerate(
        [
            (motion[..., :rows], model.motion_embed, 2),
            (motion[..., rows:], model.motion_embed, 2),
            (content, model.content_embed, 4),
        ]
    ):
        for i in range(z.shape[1] // side):
            for j in range(z.shape[2] // side):
                tokens.append(project(convolution, z, i, j, side) + place(i, j, d) + model.plane_embed[plane])
    first, _, second = model.timestep_embed
    c = second(silu(first(torch.tensor(angles(time, 256)))))
    if condition == "text_dim":
        given = {"pooled_text": torch.randn(1, 7)}
        c = c + model.text_embed.weight @ given["pooled_text"][0] + model.text_embed.bias
    else:
        given = {"class_labels": torch.tensor([5])}
        c = c + model.class_embed.weight[5]
    x = torch.stack(tokens)[None]
    for block in model.blocks:
        x = block(x, c[None, None])
    shift, scale = (model.modulation_out[1].weight @ silu(c) + model.modulation_out[1].bias).view(2, d)
    x = layer_norm(x[0], (d,), eps=1e-6) * (1 + scale) + shift
    x = model.proj_out(x)
    count = t // 2 * (rows // 2)
    z_x = to_pixels(x[:count].view(t // 2, rows // 2, -1), 4)
    z_y = to_pixels(x[count : count + t // 2 * (columns // 2)].view(t // 2, columns // 2, -1), 4)
    out = model(motion[None], torch.tensor([time]), content[None], **given)
    torch.testing.assert_close(out[0], torch.cat([z_x, z_y], dim=2), atol=1e-4, rtol=1e-4)


def test_motion_is_standardised_per_channel() -> None:
    model = make_autoencoder(motion_mean=[1.0, -2.0], motion_std=[0.5, 4.0])
    z = torch.randn(3, 2, 4, 6)
    by_hand = torch.stack([(z[:, 0] - 1.0) / 0.5, (z[:, 1] + 2.0) / 4.0], dim=1)
    torch.testing.assert_close(model.standardize_motion(z), by_hand)
    torch.testing.assert_close(model.standardize_motion(by_hand, inverse=True), z)

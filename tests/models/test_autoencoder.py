"""Properties of the autoencoder (CMD Eq. 3-6), and its attention against an independent computation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from contentmotion.models.autoencoder import ContentMotionAutoencoder, TimeSformerBlock
from contentmotion.models.layers import Attention

SIZES = {
    "in_channels": 3,
    "hidden_size": 16,
    "depth": 2,
    "num_heads": 2,
    "head_dim": 12,
    "motion_channels": 5,
}


def make_autoencoder(**kwargs: object) -> ContentMotionAutoencoder:
    """A tiny one with no weight at zero, so that nothing is trivially right."""
    torch.manual_seed(0)
    model = ContentMotionAutoencoder(**{**SIZES, **kwargs})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@given(
    b=st.integers(1, 2), t=st.integers(1, 5), rows=st.integers(1, 4), columns=st.integers(1, 4),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_every_size_that_fits_comes_back(b: int, t: int, rows: int, columns: int, seed: int) -> None:
    model = make_autoencoder()
    x = torch.randn(b, t, 3, 2 * rows, 2 * columns, generator=torch.Generator().manual_seed(seed))
    encoded = model.encode(x)
    assert encoded.content.shape == (b, 3, 2 * rows, 2 * columns)
    assert encoded.motion_latent.shape == (b, 5, t, rows + columns)
    assert model.decode(encoded.content, encoded.motion_latent).shape == x.shape
    torch.testing.assert_close(encoded.weights.sum(1), torch.ones_like(encoded.content))
    assert (encoded.content <= x.amax(1) + 1e-5).all()
    assert (encoded.content >= x.amin(1) - 1e-5).all()


@pytest.mark.parametrize("content_mode", ["softmax", "mean"])
def test_still_video_is_its_own_content_frame(content_mode: str) -> None:
    frame = torch.randn(2, 3, 6, 4)
    encoded = make_autoencoder(content_mode=content_mode).encode(frame[:, None].expand(-1, 7, -1, -1, -1))
    torch.testing.assert_close(encoded.content, frame)


def test_plain_mean_and_fresh_softmax_agree() -> None:
    x = torch.randn(1, 4, 3, 4, 4)
    fresh = ContentMotionAutoencoder(**SIZES).encode(x).content
    torch.testing.assert_close(fresh, x.mean(1))
    torch.testing.assert_close(make_autoencoder(content_mode="mean").encode(x).content, x.mean(1))


@pytest.mark.parametrize("index", [0, 2, -1])
def test_content_frame_can_be_a_frame(index: int) -> None:
    x = torch.randn(2, 4, 3, 4, 4)
    encoded = make_autoencoder(content_mode="frame", content_index=index).encode(x)
    assert torch.equal(encoded.content, x[:, index])
    fresh = ContentMotionAutoencoder(**SIZES, content_mode="frame", content_index=index)
    torch.testing.assert_close(fresh(x), x[:, index][:, None].expand_as(x))


def test_weights_depend_on_the_video() -> None:
    encoded = make_autoencoder().encode(torch.randn(1, 4, 3, 4, 4))
    assert encoded.weights.std(dim=1).mean() > 0.01


def test_batch_equals_items_one_by_one() -> None:
    model = make_autoencoder()
    x = torch.randn(3, 4, 3, 4, 6)
    torch.testing.assert_close(model(x), torch.cat([model(item[None]) for item in x]), atol=1e-5, rtol=1e-4)


def test_residual_decoding_starts_at_the_content_frame() -> None:
    x = torch.randn(1, 4, 3, 4, 4)
    torch.testing.assert_close(ContentMotionAutoencoder(**SIZES)(x), x.mean(1, keepdim=True).expand_as(x))
    plain = ContentMotionAutoencoder(**SIZES, residual_decoding=False)(x)
    assert (plain - x.mean(1, keepdim=True)).abs().mean() > 0.1


def test_decoder_sums_content_and_motion_by_rows_and_columns() -> None:
    """Eq. 6: row h of frame t gets z_x[t, h], column w gets z_y[t, w]."""
    model = make_autoencoder()
    content, z = torch.zeros(1, 3, 4, 6), torch.zeros(1, 5, 2, 2 + 3)
    seen = []
    model.decoder[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.decode(content, z)
    changed = z.clone()
    changed[0, :, 1, 0] = 1.0  # z_x of frame 1, row 0
    changed[0, :, 0, 2 + 1] = 1.0  # z_y of frame 0, column 1
    model.decode(content, changed)
    moved = (seen[1] - seen[0]).abs().sum(-1)[0].view(2, 2, 3) > 1e-6  # (t, H', W')
    expected = torch.zeros(2, 2, 3, dtype=torch.bool)
    expected[1, 0, :] = True
    expected[0, :, 1] = True
    assert torch.equal(moved, expected)


def test_gradient_checkpointing_changes_nothing() -> None:
    model, x = make_autoencoder().train(), torch.randn(1, 3, 3, 4, 4)
    model(x).square().mean().backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.enable_gradient_checkpointing()
    model(x).square().mean().backward()
    for p, before in zip(model.parameters(), plain, strict=True):
        torch.testing.assert_close(p.grad, before)


def test_motion_statistics_round_trip_and_save(tmp_path) -> None:
    model = make_autoencoder()
    z = torch.randn(2, 5, 4, 6)
    with pytest.raises(ValueError, match="no motion statistics"):
        model.standardize_motion(z)
    model.register_to_config(motion_mean=[1.0, 2, 3, 4, 5], motion_std=[2.0, 2, 2, 2, 4])
    torch.testing.assert_close(model.standardize_motion(model.standardize_motion(z), inverse=True), z)
    model.save_pretrained(tmp_path)
    again = ContentMotionAutoencoder.from_pretrained(tmp_path).eval()
    x = torch.randn(1, 2, 3, 4, 4)
    torch.testing.assert_close(again(x), model(x))
    torch.testing.assert_close(again.standardize_motion(z), model.standardize_motion(z))


@pytest.mark.parametrize(
    ("x", "message"),
    [((1, 2, 3, 5, 4), "height must be a multiple of 2, got 5"), ((1, 2, 4, 4, 4), "3 channels, got 4")],
)
def test_videos_that_do_not_fit(x: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_autoencoder().encode(torch.zeros(x))


def test_motion_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="does not fit a content frame of 4x4"):
        make_autoencoder().decode(torch.zeros(1, 3, 4, 4), torch.zeros(1, 5, 2, 7))


def test_divided_attention_against_explicit_loops() -> None:
    """Time attention mixes frames of one place, space attention places of one frame, computed token by token."""
    torch.manual_seed(0)
    block = TimeSformerBlock(8, num_heads=2, head_dim=3, mlp_ratio=2.0)
    u = torch.randn(1, 3, 4, 8)

    def attend(attention: Attention, tokens: torch.Tensor) -> torch.Tensor:
        q, k, v = attention.qkv(tokens).view(len(tokens), 3, 2, 3).unbind(1)  # (n, heads, 3)
        out = torch.zeros(len(tokens), 2, 3)
        for i in range(len(tokens)):
            for head in range(2):
                share = torch.softmax(k[:, head] @ q[i, head] / 3**0.5, dim=0)
                out[i, head] = share @ v[:, head]
        return attention.proj(out.flatten(1))

    with torch.no_grad():
        expected = u.clone()
        for n in range(4):
            expected[0, :, n] += attend(block.attn_time, block.norm_time(u[0, :, n]))
        middle = expected.clone()
        for t in range(3):
            expected[0, t] += attend(block.attn_space, block.norm_space(middle[0, t]))
        expected = expected + block.mlp(block.norm_mlp(expected))
        torch.testing.assert_close(block(u), expected)
    torch.testing.assert_close(block(u), expected)  # with gradients: the CPU's other path


@pytest.mark.parametrize(("refine_channels", "crosses"), [(0, False), (8, True)])
def test_refine_head_sees_across_patches(refine_channels: int, crosses: bool) -> None:
    """The linear head writes each patch from its own token alone; the convolutional one reads its neighbours."""
    model = make_autoencoder(depth=0, residual_decoding=False, refine_channels=refine_channels)
    content, motion = torch.randn(1, 3, 8, 8), torch.randn(1, 5, 3, 8)
    with torch.no_grad():
        before = model.decode(content, motion)
        content[..., :2, :2] += 1  # one patch
        changed = (model.decode(content, motion) - before).abs().sum((0, 1, 2)) > 1e-6
    assert changed[:2, :2].all()
    assert changed[2:4].any() == crosses
    assert not changed[4:].any()


def test_refine_head_starts_from_the_content_frame() -> None:
    model = ContentMotionAutoencoder(**SIZES, refine_channels=8)
    encoded = model.encode(torch.randn(1, 2, 3, 4, 4))
    assert torch.equal(model.decode(encoded.content, encoded.motion_latent)[:, 1], encoded.content)


def test_attention_against_the_original_timesformer(shared_data) -> None:
    """Our attention layer inside the original's forward pass, with its weights, gives its output."""
    with safe_open(shared_data / "reference-outputs/timesformer_ref.safetensors", "pt") as file:
        ref = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.linear(x, ref[f"w.{name}.weight"], ref[f"w.{name}.bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x, (64,), ref[f"w.{name}.weight"], ref[f"w.{name}.bias"])

    def attention(name: str) -> Attention:
        layer = Attention(64, num_heads=4)
        prefix = f"w.{name}."
        layer.load_state_dict({k.removeprefix(prefix): v for k, v in ref.items() if k.startswith(prefix)})
        return layer

    x = ref["io.x"]  # (b, 3, t, 32, 32)
    b, t, n = x.shape[0], x.shape[2], 16
    with torch.no_grad():
        frames = x.transpose(1, 2).flatten(0, 1)
        weight, bias = ref["w.patch_embed.proj.weight"], ref["w.patch_embed.proj.bias"]
        tokens = torch.nn.functional.conv2d(frames, weight, bias, stride=8).flatten(2).transpose(1, 2)
        tokens = tokens.view(b, t, n, 64) + ref["w.pos_embed"][:, None, 1:] + ref["w.time_embed"][:, :, None]
        cls = (ref["w.cls_token"] + ref["w.pos_embed"][:, :1]).expand(b, 1, 64)
        for i in range(2):
            tubes = norm(tokens, f"blocks.{i}.temporal_norm1").transpose(1, 2).flatten(0, 1)  # (b n, t, d)
            mixed = attention(f"blocks.{i}.temporal_attn")(tubes).view(b, n, t, 64).transpose(1, 2)
            tokens = tokens + linear(mixed, f"blocks.{i}.temporal_fc")
            per_frame = torch.cat([cls[:, None].expand(b, t, 1, 64), tokens], dim=2).flatten(0, 1)
            mixed = attention(f"blocks.{i}.attn")(norm(per_frame, f"blocks.{i}.norm1")).view(b, t, n + 1, 64)
            tokens, cls = tokens + mixed[:, :, 1:], cls + mixed[:, :, 0].mean(1, keepdim=True)
            both = torch.cat([cls, tokens.flatten(1, 2)], dim=1)
            hidden = torch.nn.functional.gelu(linear(norm(both, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1"))
            both = both + linear(hidden, f"blocks.{i}.mlp.fc2")
            cls, tokens = both[:, :1], both[:, 1:].view(b, t, n, 64)
        out = linear(norm(cls[:, 0], "norm"), "head")
    torch.testing.assert_close(out, ref["io.out"], atol=1e-5, rtol=1e-4)

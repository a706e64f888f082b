"""The motion model: shapes, conditioning, and parity with two independent DiTs."""

import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors import safe_open

from contentmotion.models.autoencoder import ContentMotionAutoencoder
from contentmotion.models.motion_dit import DiTBlock, MotionDiT, modulate, sincos_embedding

SIZES = {
    "motion_channels": 3, "content_channels": 4, "hidden_size": 16, "depth": 2, "num_heads": 2,
    "content_patch_size": 2,
}  # fmt: skip


def make_motion_dit(**kwargs: object) -> MotionDiT:
    """A tiny one with no weight at zero."""
    torch.manual_seed(0)
    model = MotionDiT(**{**SIZES, **kwargs})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.mark.parametrize(("h", "w", "t"), [(8, 8, 4), (8, 16, 6), (4, 12, 2)])
@pytest.mark.parametrize("learn_sigma", [False, True])
def test_output_has_the_motions_shape(h: int, w: int, t: int, learn_sigma: bool) -> None:
    model = make_motion_dit(text_dim=7, learn_sigma=learn_sigma)
    z = torch.randn(2, 3, t, (h + w) // 2)
    out = model(z, torch.tensor([0, 999]), torch.randn(2, 4, h, w), pooled_text=torch.randn(2, 7))
    assert out.shape == (2, 6 if learn_sigma else 3, t, (h + w) // 2)


def test_starts_at_zero() -> None:
    model = MotionDiT(**SIZES, num_classes=3)
    z = torch.randn(1, 3, 2, 8)
    out = model(z, torch.tensor([5]), torch.randn(1, 4, 8, 8), class_labels=torch.tensor([3]))
    assert torch.equal(out, torch.zeros_like(z))


def test_depends_on_every_input() -> None:
    model = make_motion_dit(text_dim=7)
    z, t, c, y = torch.randn(1, 3, 4, 8), torch.tensor([500]), torch.randn(1, 4, 8, 8), torch.randn(1, 7)
    out = model(z, t, c, pooled_text=y)
    assert not torch.allclose(out, model(z, t + 100, c, pooled_text=y))
    assert not torch.allclose(out, model(z, t, c + 1, pooled_text=y))
    assert not torch.allclose(out, model(z, t, c, pooled_text=y + 1))
    far = z.clone()
    far[..., -1] += 1  # the y-plane influences the x-plane through attention
    assert not torch.allclose(out[..., 0], model(far, t, c, pooled_text=y)[..., 0])


def test_batch_equals_items_one_by_one() -> None:
    model = make_motion_dit(num_classes=3)
    z, t, c = torch.randn(3, 3, 4, 8), torch.tensor([1, 20, 300]), torch.randn(3, 4, 8, 8)
    labels = torch.tensor([0, 1, 3])
    one_by_one = [model(z[i : i + 1], t[i : i + 1], c[i : i + 1], class_labels=labels[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(model(z, t, c, class_labels=labels), torch.cat(one_by_one), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "content", "message"),
    [
        ((1, 3, 3, 8), (1, 4, 8, 8), "frames must be a multiple of 2, got 3"),
        ((1, 3, 4, 7), (1, 4, 8, 8), "does not fit a content frame of 8x8"),
    ],
)
def test_sizes_that_do_not_fit(shape: tuple[int, ...], content: tuple[int, ...], message: str) -> None:
    model = make_motion_dit(num_classes=3)
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(shape), torch.tensor([0]), torch.zeros(content), class_labels=torch.tensor([0]))


def test_missing_condition_and_unknown_preset() -> None:
    with pytest.raises(ValueError, match="give pooled_text"):
        make_motion_dit(text_dim=7)(torch.zeros(1, 3, 2, 8), torch.tensor([0]), torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match="choose from DiT-S/2"):
        MotionDiT.from_preset("DiT-H/2")


@pytest.mark.parametrize("statistics", [({}, None), ([0.0] * 3, None), (None, [1.0] * 3), ([0.0] * 2, [1.0] * 2)])
def test_statistics_are_a_number_a_channel(statistics: tuple) -> None:
    given = dict(zip(("motion_mean", "motion_std"), statistics, strict=True))
    for make in (MotionDiT, ContentMotionAutoencoder):
        with pytest.raises(ValueError, match=r"motion_(mean|std) must be 3 numbers, one a channel, got "):
            make(motion_channels=3, **given)


def test_presets_are_the_papers() -> None:
    with torch.device("meta"):
        large = MotionDiT.from_preset("DiT-L/2", content_channels=3, num_classes=101, learn_sigma=True)
    assert (large.config.hidden_size, large.config.depth, large.config.num_heads) == (1024, 24, 16)


def test_gradient_checkpointing_changes_nothing() -> None:
    model = make_motion_dit(num_classes=3).train()
    inputs = (torch.randn(1, 3, 4, 8), torch.tensor([7]), torch.randn(1, 4, 8, 8), torch.tensor([1]))
    model(*inputs).square().mean().backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.enable_gradient_checkpointing()
    model(*inputs).square().mean().backward()
    for p, before in zip(model.parameters(), plain, strict=True):
        torch.testing.assert_close(p.grad, before)


def test_block_against_diffusers_dit() -> None:
    """One of our blocks with the weights of one of diffusers' computes the same."""
    torch.manual_seed(0)
    theirs = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=1, sample_size=8, num_embeds_ada_norm=5,
    ).eval().transformer_blocks[0]  # fmt: skip
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = DiTBlock(16, num_heads=2, mlp_ratio=4.0)
    attn = theirs.attn1
    ours.attn.qkv.weight.data = torch.cat([m.weight for m in (attn.to_q, attn.to_k, attn.to_v)])
    ours.attn.qkv.bias.data = torch.cat([m.bias for m in (attn.to_q, attn.to_k, attn.to_v)])
    ours.attn.proj.load_state_dict(attn.to_out[0].state_dict())
    ours.mlp[0].load_state_dict(theirs.ff.net[0].proj.state_dict())
    ours.mlp[2].load_state_dict(theirs.ff.net[2].state_dict())
    ours.modulation[1].load_state_dict(theirs.norm1.linear.state_dict())
    x, t, y = torch.randn(2, 6, 16), torch.tensor([3, 700]), torch.tensor([1, 4])
    condition = theirs.norm1.emb(t, y, hidden_dtype=x.dtype)
    torch.testing.assert_close(ours(x, condition[:, None]), theirs(x, timestep=t, class_labels=y), atol=1e-5, rtol=1e-4)


def test_against_the_original_dit(shared_data) -> None:
    """Everything the two share (embeddings, blocks, final layer, patch order), with the original's weights."""
    with safe_open(shared_data / "reference-outputs/dit_ref.safetensors", "pt") as file:
        ref = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    model = MotionDiT(
        motion_channels=4, content_channels=4, hidden_size=64, depth=2, num_heads=4, num_classes=10, learn_sigma=True,
    ).eval()  # fmt: skip
    names = {
        "x_embedder.proj": "motion_embed", "t_embedder.mlp": "timestep_embed", "adaLN_modulation": "modulation",
        "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2", "y_embedder.embedding_table": "class_embed",
        "final_layer.modulation": "modulation_out", "final_layer.linear": "proj_out",
    }  # fmt: skip
    weights = {}
    for key, value in ref.items():
        if key.startswith("w.") and key != "w.pos_embed":
            name = key.removeprefix("w.")
            for theirs, ours in names.items():
                name = name.replace(theirs, ours)
            weights[name] = value
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.startswith(("content_embed", "plane_embed")) for name in missing)
    with torch.no_grad():
        x = model.motion_embed(ref["io.x"]).flatten(2).transpose(1, 2) + ref["w.pos_embed"]
        timesteps, labels = ref["io.t"], ref["io.y"].long()
        condition = (model.timestep_embed(sincos_embedding(256, timesteps)) + model.class_embed(labels))[:, None]
        for block in model.blocks:
            x = block(x, condition)
        shift, scale = model.modulation_out(condition).chunk(2, dim=-1)
        out = model._plane(model.proj_out(modulate(model.norm_out(x), shift, scale)), 8, 8)
    torch.testing.assert_close(out, ref["io.out"], atol=1e-5, rtol=1e-4)

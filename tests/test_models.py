"""Facts of the three networks: what may touch what, and what is identity at birth."""

import copy
import warnings

import pytest
import torch
from einops import rearrange

import data
import train
from diffusion import Diffusion
from model import TextToVideo
from text_encoder import TextConfig, TextEncoder, Tokenizer
from unet3d import Attention, TemporalConv, UNet3D, UNetConfig
from vae import VAE, VAEConfig, kl_to_standard_normal

SMALL = UNetConfig(widths=(16, 32), head_dim=8, emb_width=32, context_width=16)


def unet(seed=0, born=False):
    """A small U-Net; unless `born`, with every zero-initialised layer stirred so that it acts."""
    torch.manual_seed(seed)
    net = UNet3D(SMALL).eval()
    if not born:
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.05 * torch.randn_like(p))
    return net


def inputs(b=2, f=5, seed=1):
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(6) < torch.tensor([[4], [2]] * (b // 2) if b > 1 else [[4]])
    return (torch.randn(b, 4, f, 8, 8, generator=g), torch.randint(0, 1000, (b,), generator=g),
            torch.randn(b, 6, 16, generator=g), mask)


# ---- unet3d.py -----------------------------------------------------------------------------------

def test_spatial_layers_never_cross_frames():
    net, (z, t, context, mask) = unet(), inputs()
    z.requires_grad_()
    net(z, t, context, mask, temporal=False)[:, :, 2].sum().backward()
    touched = z.grad.abs().amax((0, 1, 3, 4)) > 0
    assert touched.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("layer", ["conv", "attention"])
def test_temporal_layers_never_cross_pixels(layer):
    torch.manual_seed(0)
    x = torch.randn(1, 5, 4, 4, 16, requires_grad=True)
    net = TemporalConv(16) if layer == "conv" else Attention(16, 8, temporal=True)
    for p in net.parameters():
        torch.nn.init.normal_(p)
    y = net(x) if layer == "conv" else rearrange(
        net(rearrange(x, "b f h w c -> (b h w) f c")), "(b h w) f c -> b f h w c", h=4, w=4)
    y[0, 3, 1, 2].sum().backward()
    touched = x.grad.abs().amax((0, 1, 4)) > 0
    assert touched.sum() == 1 and touched[1, 2]
    assert (x.grad[0, :, 1, 2].abs().amax(-1) > 0).sum() == (3 if layer == "conv" else 5)


def test_new_video_net_equals_image_net_per_frame():
    net, (z, t, context, mask) = unet(born=True), inputs()
    with torch.no_grad():
        for name, p in net.named_parameters():  # an image network that has learned something
            if "temporal" not in name and not name.startswith("frame"):
                p.add_(0.05 * torch.randn_like(p))
        clip = net(z, t, context, mask)
        assert torch.equal(clip, net(z, t, context, mask, temporal=False))
        stills = torch.cat([net(z[:, :, i:i + 1], t, context, mask) for i in range(5)], 2)
    assert clip.abs().max() > 0.1 and torch.allclose(clip, stills, atol=1e-5)


def test_frame_order_matters():
    net, (z, t, context, mask) = unet(), inputs()
    with torch.no_grad():
        back = net(z.flip(2), t, context, mask).flip(2)
        assert not torch.allclose(net(z, t, context, mask), back, atol=1e-3)


@pytest.mark.parametrize("change", ["t", "stride", "context", "known"])
def test_every_input_changes_the_prediction(change):
    net, (z, t, context, mask) = unet(), inputs()
    known, known_mask = torch.randn_like(z), torch.arange(5).expand(2, 5) % 2 == 0
    with torch.no_grad():
        plain = net(z, t, context, mask, 4)
        other = {"t": lambda: net(z, (t + 400) % 1000, context, mask, 4),
                 "stride": lambda: net(z, t, context, mask, 1),
                 "context": lambda: net(z, t, context + 1, mask, 4),
                 "known": lambda: net(z, t, context, mask, 4, known, known_mask)}[change]()
    assert not torch.allclose(plain, other, atol=1e-4)


def test_unknown_frames_of_known_are_ignored():
    net, (z, t, context, mask) = unet(), inputs()
    known, known_mask = torch.randn_like(z), torch.arange(5).expand(2, 5) % 2 == 0
    other = torch.where(rearrange(known_mask, "b f -> b 1 f 1 1"), known, 99.)
    with torch.no_grad():
        assert torch.equal(net(z, t, context, mask, 2, known, known_mask),
                           net(z, t, context, mask, 2, other, known_mask))


def test_window_length_is_not_in_the_weights():
    net = unet()
    for f in (1, 2, 17, 23):
        z, t, context, mask = inputs(f=f)
        assert net(z, t, context, mask).shape == z.shape


def test_wrong_latents_are_refused_with_a_sentence():
    _, t, context, mask = inputs()
    with pytest.raises(AssertionError, match="z_t must be"):
        unet()(torch.randn(2, 3, 5, 8, 8), t, context, mask)


# ---- text_encoder.py -----------------------------------------------------------------------------

def text(**kw):
    torch.manual_seed(0)
    return TextEncoder(TextConfig(vocabulary=9, length=8, width=16, heads=2, **kw)).eval()


def test_padding_is_invisible():
    tokens = torch.tensor([[3, 1, 4, 0, 0, 0, 0, 0]])
    net = text()
    with torch.no_grad():
        short, padded = net(tokens[:, :3])[0], net(tokens)[0][:, :3]
        assert torch.allclose(short, padded, atol=1e-5)
        z, t, _, _ = inputs(b=1)
        context, mask = net(tokens)
        other = torch.where(mask[..., None], context, 1e3)
        big = unet()
        assert torch.allclose(big(z, t, context, mask), big(z, t, other, mask), atol=1e-4)


def test_word_order_matters():
    with torch.no_grad():
        context, _ = text()(torch.tensor([[1, 2, 3], [3, 2, 1]]))
    assert not torch.allclose(context[0].mean(0), context[1].mean(0), atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_words_weighs_at_least_a_tenth_of_the_words_at_birth(seed):
    """Else a turn is a coin toss. With words of scale 1 (torch's default) it is a 160th."""
    torch.manual_seed(seed)
    words = data.VOCABULARY["full"]
    captions = ["a 3 moving left then down", "a 3 moving down then left", "a 3 moving left then up",
                "a 3 moving right then up"]
    with torch.no_grad():
        context, mask = TextEncoder(TextConfig(vocabulary=len(words)))(Tokenizer(words)(captions))
    mean = (context * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)            # b d
    swapped, changed = (mean[0] - mean[1]).norm(), (mean[2] - mean[3]).norm()
    assert swapped > changed / 10


def test_null_prompt_is_one_learned_token_and_gets_gradient():
    net = text()
    context, mask = net(torch.tensor([[1, 2, 0], [4, 5, 6]]), drop=torch.tensor([False, True]))
    assert mask.tolist() == [[True, True, False], [True, False, False]]
    assert torch.equal(context[1, 0], net.null)
    (context * mask[..., None]).sum().backward()
    assert net.null.grad.abs().sum() > 0


def test_a_caption_without_known_words_is_the_null_prompt():
    tokenizer = Tokenizer(data.VOCABULARY["full"])
    with pytest.warns(UserWarning, match="zebra"):
        tokens = tokenizer(["zebra!"])
    context, mask = TextEncoder(TextConfig(vocabulary=len(data.VOCABULARY["full"])))(tokens)
    assert mask.sum() == 1 and context.isfinite().all()


def test_tokenizer_knows_the_grammar_and_ignores_case():
    tokenizer = Tokenizer(data.VOCABULARY["full"])
    scenes = data.make_scenes(500, digits=data.load_digits("train", "drawn"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens = tokenizer(scenes.captions + scenes.subjects)
    assert (tokens > 0).sum(1).max() <= 17 < tokenizer.length
    assert torch.equal(tokenizer(["A 3 Moving LEFT"]), tokenizer(["a 3 moving left"]))


# ---- vae.py --------------------------------------------------------------------------------------

def small_vae(channels=1):
    torch.manual_seed(0)
    return VAE(VAEConfig(channels=channels, widths=(8, 16, 16), blocks=1))


def test_kl_matches_torch_distributions():
    mean, log_var = torch.randn(2, 3, 4, 2, 2)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(
        normal(mean, (log_var / 2).exp()), normal(0., 1.)).sum((1, 2, 3))
    assert torch.allclose(kl_to_standard_normal(mean, log_var), expected, atol=1e-4)


def test_latents_have_unit_std_once_measured():
    vae = small_vae()
    x, _, _ = data.captioned_clips(8, num_frames=16, digits=data.load_digits("train", "drawn"))
    with torch.no_grad():
        before = vae.decode(vae.encode(x))
        vae.measure_latents([rearrange(x, "b c f h w -> (b f) c h w")])
        z = rearrange(vae.encode(x), "b d f h w -> d (b f h w)")
        assert z.mean(1).abs().max() < 1e-3 and (z.std(1) - 1).abs().max() < 1e-3
        assert torch.allclose(vae.decode(vae.encode(x)), before, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_vae_sees_each_frame_alone_in_one_or_three_channels(channels):
    vae, x = small_vae(channels), torch.randn(2, channels, 3, 32, 48)
    z = vae.encode(x)
    assert z.shape == (2, 4, 3, 4, 6) and vae.decode(z).shape == x.shape
    assert torch.allclose(vae.encode(x[:, :, 1:2]), z[:, :, 1:2], atol=1e-5)
    with pytest.raises(ValueError, match="encode needs"):
        vae.encode(torch.randn(1, channels, 2, 30, 48))


# ---- all together --------------------------------------------------------------------------------

def config(**changes):
    return dict(vae=vars(VAEConfig(widths=(8, 16, 16), blocks=1)), unet=vars(SMALL), size=64,
                text=vars(TextConfig(width=16, heads=2)), vocabulary=data.VOCABULARY["full"],
                schedule="cosine", predict="v") | changes


DRAWN = data.MovingMNIST(digits=data.load_digits("train", "drawn"))


def test_every_parameter_moves_within_three_steps():
    torch.manual_seed(0)
    model = TextToVideo(config())
    model.vae.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, weight_decay=0)
    for step in range(3):
        batch = train.draw_windows(DRAWN, 0, 48 * step, 48, "cpu")
        loss, _ = train.diffusion_loss(model, *batch, torch.Generator().manual_seed(step))
        loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    still = [name for name, value in model.state_dict().items()
             if torch.equal(value, before[name]) and not name.startswith("vae.")]
    assert not still
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()
               if name.startswith("vae."))


def test_overfits_one_clip():
    """A network trained on one latent clip samples that clip."""
    torch.manual_seed(0)
    net, diffusion, z = UNet3D(SMALL), Diffusion(), torch.randn(1, 4, 3, 4, 4)
    context, mask = torch.zeros(1, 1, 16), torch.ones(1, 1, dtype=torch.bool)
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3)
    eight = z.expand(8, -1, -1, -1, -1)

    def model(x, t):
        return net(x, t, context.expand(len(x), -1, -1), mask.expand(len(x), -1))

    for step in range(250):
        loss = diffusion.loss(model, eight, torch.randint(0, 1000, (8,)), torch.randn_like(eight))
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    sample = diffusion.dpm(model, torch.randn_like(z), 20)
    assert (sample - z).square().mean() < 0.05


def test_parameter_budgets():
    count = lambda net: sum(p.numel() for p in net.parameters())
    vae, unet = train.SIZES["base"]
    assert count(UNet3D(unet)) <= 8e6 and count(VAE(vae)) <= 1.1e6
    assert count(TextEncoder(TextConfig())) <= 0.5e6


def test_clip_windows_teach_every_task():
    """Shares, strides and known frames of the training windows; never is every frame known."""
    x, captions, stride, known = train.draw_windows(DRAWN, 0, 1920, 640, "cpu")
    assert x.shape == (640, 1, 17, 64, 64) and set(stride.tolist()) == {1, 2, 4}
    count = known.sum(1)
    whole = (stride == 4) & (count == 0)
    assert .5 < whole.float().mean() < .63                          # text -> clip, 9 of 16
    assert known[count == 1][:, 0].all()                            # pictures come first
    assert known[(stride == 4) & (count == 4)][:, :4].all()         # continuations
    assert (known[:, ::2].all(1) & (count == 9) & (stride < 4)).float().mean() > .14   # fills
    assert ((stride < 4) & (count == 0)).any() and (count < 17).all()

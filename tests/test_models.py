"""Facts of the three networks: what may touch what, and what is identity at birth."""

import copy

import pytest
import torch
from einops import rearrange

import data
import train
from diffusion import Diffusion
from model import TextToVideo, amp
from support.digitnet import DigitNet
from support.muon import Muon
from support.replay import Replayed
from text_encoder import TextConfig, TextEncoder, Tokenizer
from unet3d import WAVE_BASE, Attention, TemporalConv, UNet3D, UNetConfig, rotary, sinusoid
from vae import VAE, VAEConfig, kl_to_standard_normal

SMALL = UNetConfig(widths=(16, 32), head_dim=8, emb_width=32, context_width=16)
WORDS = data.VOCABULARY["full"]
DRAWN = data.MovingMNIST(digits=data.load_digits("test", "drawn"))

def stir(parameters):
    """So that what is zero at birth acts."""
    with torch.no_grad():
        for p in parameters:
            p.add_(0.05 * torch.randn_like(p))

def unet(born=False):
    torch.manual_seed(0)
    net = UNet3D(SMALL).eval()
    stir([] if born else net.parameters())
    return net

def inputs():
    """z_t; t, context and mask; known frames and their mask, every other frame."""
    g = torch.Generator().manual_seed(1)
    z, known = torch.randn(2, 2, 4, 5, 8, 8, generator=g)
    mask = torch.arange(6) < torch.tensor([[4], [2]])
    rest = torch.randint(0, 1000, (2,), generator=g), torch.randn(2, 6, 16, generator=g), mask
    return z, rest, (known, torch.arange(5).expand(2, 5) % 2 == 0)

def test_spatial_layers_never_cross_frames():
    z, rest, _ = inputs()
    z.requires_grad_()
    unet()(z, *rest, temporal=False)[:, :, 2].sum().backward()
    touched = z.grad.abs().amax((0, 1, 3, 4)) > 0
    assert touched.tolist() == [False, False, True, False, False]

@pytest.mark.parametrize("layer,reach", [
    (TemporalConv(16), 3), (Attention(16, 8, temporal=True), 5)])
def test_temporal_layers_never_cross_pixels(layer, reach):
    torch.manual_seed(0)
    x = torch.randn(1, 5, 4, 4, 16, requires_grad=True)
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    y = layer(x) if reach == 3 else rearrange(
        layer(rearrange(x, "b f h w c -> (b h w) f c")), "(b h w) f c -> b f h w c", h=4, w=4)
    y[0, 3, 1, 2].sum().backward()
    touched = x.grad.abs().amax((0, 1, 4)) > 0
    assert touched.sum() == 1 and touched[1, 2]
    assert (x.grad[0, :, 1, 2].abs().amax(-1) > 0).sum() == reach

def test_rotary_makes_products_know_how_far_apart_two_frames_are():
    """RoFormer Eq. 14, with complex numbers: halves are real and imaginary parts, turned by e^iθ,
    so q·k of frames m and n is that of frames m - n and 0. Frame 0 is left as it is."""
    q, k = torch.randn(2, 8, dtype=torch.float64)
    wave = sinusoid(torch.arange(9.), 8, WAVE_BASE).double()
    turned_q, turned_k = (rotary(one.expand(1, 2, 9, 8), wave) for one in (q, k))
    assert torch.allclose(turned_q[0, 1, 0], q)
    angle = torch.arange(9.)[:, None] * WAVE_BASE ** -(torch.arange(4) / 4)
    expected = torch.complex(q[:4], q[4:]) * torch.polar(torch.ones(9, 4), angle)      # f e/2
    assert torch.allclose(turned_q[0, 0], torch.cat([expected.real, expected.imag], -1), atol=1e-6)
    products = turned_q[0, 0] @ turned_k[0, 0].T                                       # f f
    assert torch.allclose(products[1:, 1:], products[:-1, :-1], atol=1e-6)

def test_new_video_net_equals_image_net_per_frame():
    net, (z, rest, _) = unet(born=True), inputs()
    stir(p for name, p in net.named_parameters()  # an image network that has learned something
         if "temporal" not in name and not name.startswith("frame"))
    clip = net(z, *rest)
    assert torch.equal(clip, net(z, *rest, temporal=False))
    stills = torch.cat([net(z[:, :, i:i + 1], *rest) for i in range(5)], 2)
    assert clip.abs().max() > 0.1 and torch.allclose(clip, stills, atol=1e-5)

def test_frame_order_matters():
    net, (z, rest, _) = unet(), inputs()
    assert not torch.allclose(net(z, *rest), net(z.flip(2), *rest).flip(2), atol=1e-3)

@pytest.mark.parametrize("change", ["t", "stride", "context", "known"])
def test_every_input_changes_the_prediction(change):
    net, (z, (t, context, mask), known) = unet(), inputs()
    other = {"t": ((t + 400) % 1000, context, mask, 4), "stride": (t, context, mask, 1),
             "context": (t, context + 1, mask, 4), "known": (t, context, mask, 4, *known)}[change]
    assert not torch.allclose(net(z, t, context, mask, 4), net(z, *other), atol=1e-4)

def test_unknown_frames_of_known_are_ignored():
    net, (z, rest, (known, shown)) = unet(), inputs()
    other = torch.where(rearrange(shown, "b f -> b 1 f 1 1"), known, 99.)
    assert torch.equal(net(z, *rest, 2, known, shown), net(z, *rest, 2, other, shown))

def test_wrong_latents_are_refused_with_a_sentence():
    for shape in ((2, 3, 5, 8, 8), (2, 4, 5, 9, 8), (2, 4, 65, 8, 8)):
        with pytest.raises(AssertionError, match="z_t must be"):
            unet()(torch.randn(shape), *inputs()[1])

@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are CUDA's")
def test_a_replayed_pass_is_the_pass_also_after_weights_changed():
    """In place as in training, or cast to other memory; with other inputs, rows, known frames."""
    net, (z, rest, known) = unet().cuda(), inputs()
    values = [value.cuda() for value in (z, *rest, torch.tensor([4, 2]), *known)]
    for change in (lambda: None, lambda: stir(net.parameters()), net.bfloat16):
        change()
        for given in (values, [value.flip(0) for value in values], values[:5],
                      [value[:1] for value in values]):
            with torch.no_grad(), amp(z.cuda().device):
                assert torch.allclose(Replayed(net)(*given), net(*given), atol=1e-2)

def text(**kw):
    torch.manual_seed(0)
    return TextEncoder(TextConfig(vocabulary=9, length=8, width=16, heads=2, **kw)).eval()

def test_padding_is_invisible():
    tokens, net, big = torch.tensor([[3, 1, 4, 0, 0, 0, 0, 0]] * 2), text(), unet()
    context, mask = net(tokens)
    assert torch.allclose(net(tokens[:, :3])[0], context[:, :3], atol=1e-5)
    z, (t, *_), _ = inputs()
    other = torch.where(mask[..., None], context, 1e3)
    assert torch.allclose(big(z, t, context, mask), big(z, t, other, mask), atol=1e-4)

@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_words_weighs_at_least_a_tenth_of_the_words_at_birth(seed):
    """Else a turn is a coin toss. With words of scale 1 (torch's default) it is a 160th."""
    torch.manual_seed(seed)
    captions = ["a 3 moving left then down", "a 3 moving down then left", "a 3 moving left then up",
                "a 3 moving right then up"]
    context, mask = TextEncoder(TextConfig(vocabulary=len(WORDS)))(Tokenizer(WORDS)(captions))
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
    net = TextEncoder(TextConfig(vocabulary=len(WORDS)))
    with pytest.warns(UserWarning, match="zebra"):
        context, mask = net(Tokenizer(WORDS)(["zebra!"]))
    assert mask.sum() == 1 and torch.equal(context[0, 0], net.null)

@pytest.mark.filterwarnings("error")
def test_tokenizer_knows_the_grammar_and_ignores_case():
    tokenizer, scenes = Tokenizer(WORDS), DRAWN(500)
    tokens = tokenizer(scenes.captions + scenes.subjects)
    assert (tokens > 0).sum(1).max() <= 17 < tokenizer.length
    assert torch.equal(tokenizer(["A 3 Moving LEFT"]), tokenizer(["a 3 moving left"]))

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
    vae, x = small_vae(), DRAWN(8).render(range(0, 64, 4))
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

def test_every_parameter_moves_within_three_steps():
    torch.manual_seed(0)
    model = TextToVideo(dict(
        vae=vars(VAEConfig(widths=(8, 16, 16), blocks=1)), unet=vars(SMALL), size=64,
        text=vars(TextConfig(width=16, heads=2)), vocabulary=WORDS, schedule="cosine", predict="v"))
    model.vae.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0)
    for step in range(3):
        outline, captions, *rest = train.draw_windows(DRAWN, 0, 12 * step, 12)
        tokens, g = model.tokenizer(captions), torch.Generator().manual_seed(step)
        loss, _ = train.diffusion_loss(model, DRAWN.paint(outline), tokens, *rest, g)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    still = {name for name, p in model.state_dict().items() if torch.equal(p, before[name])}
    assert still == {name for name in before if name.startswith("vae.")}


def test_overfits_one_clip():
    """A network trained on one latent clip samples that clip."""
    torch.manual_seed(0)
    net, diffusion, z = UNet3D(SMALL), Diffusion(), torch.randn(1, 4, 3, 4, 4)
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3)
    eight = z.expand(8, -1, -1, -1, -1)

    def model(x, t):
        return net(x, t, torch.zeros(len(x), 1, 16), torch.ones(len(x), 1, dtype=torch.bool))

    for step in range(250):
        loss = diffusion.loss(model, eight, torch.randint(0, 1000, (8,)), torch.randn_like(eight))
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    sample = diffusion.dpm(model, torch.randn_like(z), 20)
    assert (sample - z).square().mean() < 0.05

def test_stratified_levels_come_from_the_whole_range_and_from_high_noise():
    """One in every part of the range; of those that are not uniform the fourth power is."""
    t = train.noise_levels(8000, 1 / 4, torch.Generator().manual_seed(0))
    for level in (250, 500, 750, 900):  # P(t < level) = u/4 + 3u⁴/4
        u = level / 1000
        assert abs((t < level).double().mean() - (u / 4 + 3 * u ** 4 / 4)) < .01
    even = train.noise_levels(1000, 1, torch.Generator().manual_seed(0))
    assert torch.equal(even.sort().values, torch.arange(1000))

@pytest.mark.parametrize("shape", [(48, 144), (96, 32)])
def test_muon_steps_in_all_directions_alike_and_leaves_the_rest_to_adamw(shape):
    """Its matrix is that of the gradient's singular vectors, with singular values near 1."""
    torch.manual_seed(0)
    w, bias = torch.nn.Parameter(torch.zeros(shape)), torch.nn.Parameter(torch.ones(4))
    twin = torch.nn.Parameter(bias.detach().clone())
    optimizer = Muon([("w", w), ("word.weight", bias)], lr=.1, weight_decay=.01)
    adamw = torch.optim.AdamW([twin], lr=.1, weight_decay=.01)
    w.grad, bias.grad, twin.grad = torch.randn(shape), torch.ones(4), torch.ones(4)
    u, _, v = torch.linalg.svd(w.grad, full_matrices=False)
    optimizer.step(), adamw.step()
    values = (u.T @ -w.detach() @ v.T).diag() / (.1 * max(1, shape[0] / shape[1]) ** .5)
    assert values.min() > .6 and values.max() < 1.3 and torch.equal(bias, twin)
    assert abs(values.norm() / (w.norm() / (.1 * max(1, shape[0] / shape[1]) ** .5)) - 1) < .01

def test_the_moving_average_follows_its_equation_where_weights_are_trained():
    """ema <- d·ema + (1 - d)·model with d = (1 + step)/(10 + step); what is frozen stays."""
    for step in (0, 7, 5000):
        ema, model = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
        model.bias.requires_grad_(False)
        d, bias = (1 + step) / (10 + step), ema.bias.clone()
        expected = d * ema.weight + (1 - d) * model.weight
        train.update_ema(ema.requires_grad_(False), model, step)
        assert torch.allclose(ema.weight, expected, atol=1e-6) and torch.equal(ema.bias, bias)

def test_parameter_budgets():
    count = lambda net: sum(p.numel() for p in net.parameters())
    vae, unet = train.SIZES["base"]
    assert count(UNet3D(unet)) <= 8e6 and count(VAE(vae)) <= 1.1e6
    assert count(TextEncoder(TextConfig())) <= 0.5e6 and count(DigitNet()) <= 150_000

def test_clip_windows_teach_every_task():
    """Shares, strides and known frames of the training windows; never is every frame known."""
    (_, corner, _), captions, stride, known = train.draw_windows(DRAWN, 0, 1920, 2000)
    assert corner.shape == (2000, 2, 17, 2) and set(stride.tolist()) == {1, 2, 4}
    count = known.sum(1)
    whole = (stride == 4) & (count == 0)
    assert .71 < whole.float().mean() < .79                          # text -> clip, 12 of 16
    assert known[count == 1][:, 0].all()                            # pictures come first
    assert known[(stride == 4) & (count == 4)][:, :4].all()         # continuations
    assert (known[:, ::2].all(1) & (count == 9) & (stride < 4)).float().mean() > .04   # fills
    none = (stride < 4) & (count == 0)      # such a part shows all that its caption tells
    steady = torch.from_numpy(DRAWN(2000, seed=0, start=1920).steady)
    assert none.any() and steady[none].all() and (count < 17).all()
    parts = known[(stride < 4) & ~steady & ~known[:, ::2].all(1)].float()
    assert abs(parts.mean() - .5) < .05     # random ones, where it would not

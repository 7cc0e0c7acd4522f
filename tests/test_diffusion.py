"""Facts of the method: each against a closed form, another route, or the paper's equation."""

import math

import pytest
import torch

from diffusion import PREDICTIONS, SCHEDULES, T, Diffusion, guide, timesteps

SAMPLERS = ("dpm", "ddim", "ddpm")
MEAN, STD = 2.0, 0.5
COSINE = Diffusion()

def ideal(diffusion):
    """The best possible network for data N(MEAN, STD^2): its prediction in closed form."""
    def model(x, t):
        alpha_bar = diffusion.alpha_bar[t].to(x)[:, None]
        a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        x0 = MEAN + a * STD ** 2 * (x - a * MEAN) / (alpha_bar * STD ** 2 + s ** 2)
        eps = (x - a * x0) / s
        return {"x0": x0, "eps": eps, "v": a * eps - s * x0, "flow": eps - x0}[diffusion.predict]
    return model

def errors(diffusion, sampler, steps):
    """Distances of samples from where DDIM's ODE ends: it keeps (x - mean_t) / std_t constant."""
    torch.manual_seed(0)
    x_T, alpha_bar = torch.randn(2000, 1, dtype=torch.float64), diffusion.alpha_bar[-1]
    std_T = (alpha_bar * STD ** 2 + 1 - alpha_bar).sqrt()
    exact = MEAN + STD * (x_T - alpha_bar.sqrt() * MEAN) / std_T
    return (getattr(diffusion, sampler)(ideal(diffusion), x_T, steps) - exact).abs()

@pytest.mark.parametrize("schedule", SCHEDULES)
def test_snr_falls_monotonically(schedule):
    alpha_bar = SCHEDULES[schedule]()
    snr = alpha_bar / (1 - alpha_bar)
    assert alpha_bar.dtype == torch.float64 and alpha_bar.shape == (T,)
    assert (snr.diff() < 0).all() and snr[0] > 1e3 and 0 < snr[-1] < 1e-4

def test_linear_schedule_is_ddpms():
    product = math.prod(1 - (1e-4 + (0.02 - 1e-4) * i / 999) for i in range(1000))
    assert float(SCHEDULES["linear"]()[-1]) == pytest.approx(product, rel=1e-9)

def test_q_sample_matches_ddpm_eq4():
    levels, (x0, eps) = [0, 400, 999], torch.randn(2, 3, 2, 4)
    xt = COSINE.q_sample(x0, torch.tensor(levels), eps)
    for i, a in enumerate(COSINE.alpha_bar[levels].tolist()):
        assert torch.allclose(xt[i], a ** .5 * x0[i] + (1 - a) ** .5 * eps[i], atol=1e-6)

def test_one_jump_equals_many_small_steps():
    """Eq. 2 applied 500 times has the mean and variance of one jump with Eq. 4."""
    alpha_bar = COSINE.alpha_bar
    alpha = alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    mean, variance = 1.0, 0.0
    for a in alpha[:500].tolist():
        mean, variance = a ** .5 * mean, a * variance + 1 - a
    one, t = torch.ones(1, 1, dtype=torch.float64), torch.tensor([499])
    assert COSINE.q_sample(one, t, 0 * one).item() == pytest.approx(mean, rel=1e-9)
    assert COSINE.q_sample(0 * one, t, one).item() ** 2 == pytest.approx(variance, rel=1e-9)

@pytest.mark.parametrize("predict", PREDICTIONS)
def test_eps_v_x0_round_trip(predict):
    diffusion = Diffusion("cosine", predict)
    x0, eps = torch.randn(2, 64, 3, dtype=torch.float64)
    t = torch.randint(0, T - 1, (64,))
    back = diffusion.to_x0_eps(diffusion.target(x0, t, eps), diffusion.q_sample(x0, t, eps), t)
    assert torch.allclose(back[0], x0, atol=1e-6) and torch.allclose(back[1], eps, atol=1e-6)

def test_posterior_matches_ddpm_eq7():
    """Against Bayes' rule on two Gaussians: q(x_prev | x0) q(xt | x_prev)."""
    t, t_prev = torch.tensor([[600], [450]])
    x0, xt = torch.randn(2, 1, 5, dtype=torch.float64)
    a, a_prev = COSINE.alpha_bar[t], COSINE.alpha_bar[t_prev]
    alpha = a / a_prev
    precision = alpha / (1 - alpha) + 1 / (1 - a_prev)
    expected = (alpha.sqrt() * xt / (1 - alpha) + a_prev.sqrt() * x0 / (1 - a_prev)) / precision
    mean, variance = COSINE.posterior(x0, xt, t, t_prev)
    assert torch.allclose(mean, expected) and torch.allclose(variance, 1 / precision)

def test_timesteps_are_trailing():
    assert timesteps(20)[0] == 999 and timesteps(20)[-1] == 49 and timesteps(1) == [999]
    assert timesteps(1000) == list(range(999, -1, -1))
    with pytest.raises(ValueError):
        timesteps(0)

def test_ddim_lands_on_the_exact_gaussian():
    assert errors(COSINE, "ddim", 1000).max() < 5e-3

def test_sde_finds_the_distribution_and_its_variance_is_lu_et_als():
    """The SDE form: exact in the limit; one step's noise has variance s'²(1 − e⁻²ʰ)."""
    torch.manual_seed(0)
    diffusion = Diffusion("linear", "v")
    x = diffusion.dpm(ideal(diffusion), torch.randn(4000, 1).double(), 100, eta=1.0)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.04)
    assert x.std().item() == pytest.approx(STD, abs=0.03)
    seen, still = [], torch.zeros(20_000, 1, dtype=torch.float64)
    diffusion.dpm(lambda x, t: seen.append(x) or torch.zeros_like(x), still, 10, eta=1.0)
    alpha_bar = diffusion.alpha_bar[[999, 899]]
    snr = alpha_bar / (1 - alpha_bar)
    variance = (1 - alpha_bar[1]) * (1 - snr[0] / snr[1])
    assert seen[1].var().item() == pytest.approx(variance.item(), rel=0.03)

@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_find_the_distribution_whatever_is_predicted(sampler, predict):
    torch.manual_seed(0)
    diffusion = Diffusion("linear", predict)
    x = getattr(diffusion, sampler)(ideal(diffusion), torch.randn(4000, 1).double(), 100)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.04)
    assert x.std().item() == pytest.approx(STD, abs=0.03)

# ---- flow matching: xt = (1 - u) x0 + u eps, u = (t + 1/2)/1000, and the target eps - x0 ---------

FLOW, U = Diffusion("flow", "flow"), (torch.arange(T, dtype=torch.float64) + .5) / T

def ideal_flow(x, t):
    """E[eps - x0 | xt] for data N(MEAN, STD^2): eps - x0 and xt are jointly Gaussian."""
    u = U[t][:, None]
    covariance, variance = u - (1 - u) * STD ** 2, (1 - u) ** 2 * STD ** 2 + u ** 2
    return -MEAN + covariance / variance * (x - (1 - u) * MEAN)

def test_flow_goes_straight_and_alpha_bar_is_the_datas_share_of_the_variance():
    a, s = FLOW.scales(torch.arange(T), torch.zeros(T, dtype=torch.float64))
    assert torch.allclose(a, 1 - U, rtol=1e-8) and torch.allclose(s, U, rtol=1e-8)
    assert torch.allclose(FLOW.alpha_bar, a ** 2 / (a ** 2 + s ** 2), rtol=1e-8)
    assert FLOW.scales(-1, a) == (1, 0)
    x0, eps = torch.randn(2, 5, 3)
    assert torch.equal(FLOW.target(x0, torch.arange(5), eps), eps - x0)

@pytest.mark.parametrize("predict", PREDICTIONS)
def test_every_prediction_is_undone_on_the_line_too(predict):
    diffusion, t = Diffusion("flow", predict), torch.arange(T)
    x0, eps = torch.randn(2, T, 3, dtype=torch.float64)
    back = diffusion.to_x0_eps(diffusion.target(x0, t, eps), diffusion.q_sample(x0, t, eps), t)
    assert torch.allclose(back[0], x0, atol=1e-9) and torch.allclose(back[1], eps, atol=1e-9)

def test_ddim_of_flow_is_eulers_step():
    model = lambda x, t: torch.sin(3 * x) + t[:, None] / T
    x = x_T = torch.randn(50, 2, dtype=torch.float64)
    levels = timesteps(7)
    for t, u, u_next in zip(levels, U[levels], [*U[levels[1:]], 0]):
        x = x + (u_next - u) * model(x, torch.full((50,), t))
    assert torch.allclose(FLOW.ddim(model, x_T, 7), x, rtol=1e-9, atol=1e-9)

@pytest.mark.parametrize("sampler,eta", [(name, 0.) for name in SAMPLERS] + [("dpm", 1.)])
def test_samplers_of_flow_find_the_distribution(sampler, eta):
    torch.manual_seed(0)
    options = {"eta": eta} if eta else {}
    x = getattr(FLOW, sampler)(ideal_flow, torch.randn(4000, 1).double(), 100, **options)
    assert x.mean().item() == pytest.approx(MEAN, abs=.04)
    assert x.std().item() == pytest.approx(STD, abs=.03)

def test_posterior_of_flow_is_bayes_rule():
    """The jump from u to v is xt = r x_prev + noise of variance v² − r² u², r = (1 − v)/(1 − u)."""
    t, t_prev = torch.tensor([[700], [450]])
    x0, xt = torch.randn(2, 1, 5, dtype=torch.float64)
    u, v = U[t_prev], U[t]
    r = (1 - v) / (1 - u)
    jump = v ** 2 - r ** 2 * u ** 2
    precision = r ** 2 / jump + 1 / u ** 2
    mean, variance = FLOW.posterior(x0, xt, t, t_prev)
    assert torch.allclose(mean, (r * xt / jump + (1 - u) * x0 / u ** 2) / precision)
    assert torch.allclose(variance, 1 / precision)

def test_dpm_solver_beats_ddim_at_ten_steps():
    assert errors(COSINE, "dpm", 10).mean() < errors(COSINE, "ddim", 10).mean() / 2

def test_dpm_solver_is_second_order():
    """Four times the steps: a first-order method gains 4, a second-order one up to 16 (less, for
    its first and last steps are first order), so 6 parts them."""
    linear = Diffusion("linear", "v")
    assert errors(linear, "dpm", 40).mean() < errors(linear, "dpm", 10).mean() / 6

def test_ddim_eta_one_matches_ddpm_variance():
    """And its mean: with the same noise they take the same steps."""
    x_T, noise = torch.randn(9, 1, dtype=torch.float64), torch.ones_like
    ddim = COSINE.ddim(ideal(COSINE), x_T, 10, eta=1.0, noise=noise)
    assert torch.allclose(ddim, COSINE.ddpm(ideal(COSINE), x_T, 10, noise=noise))

@pytest.mark.parametrize("sampler,options", [("ddpm", {}), ("ddim", {"eta": 1.0})])
def test_variances_are_taken_in_float64_also_for_float32(sampler, options):
    """The last steps' small variances lose their digits in float32: 1 - alpha_bar is 4e-5 there."""
    model = lambda x, t: .3 * torch.ones_like(x)
    single, double = (getattr(COSINE, sampler)(
        model, torch.full((1, 1), .7, dtype=dtype), 1000, noise=torch.ones_like, **options).item()
        for dtype in (torch.float32, torch.float64))
    assert single == pytest.approx(double, rel=2e-5)

@pytest.mark.parametrize("sampler", SAMPLERS)
def test_last_step_adds_no_noise(sampler):
    """The sample is exactly the last x0, whatever noise the earlier steps drew."""
    diffusion = Diffusion("cosine", "x0")
    x = getattr(diffusion, sampler)(lambda x, t: torch.full_like(x, 0.25), torch.randn(8, 3), 7)
    assert torch.allclose(x, torch.full_like(x, 0.25), atol=1e-6)

def test_scale_one_is_conditional_scale_zero_is_unconditional():
    u, c = torch.randn(2, 5)
    assert torch.allclose(guide(u, c, 1), c) and torch.equal(guide(u, c, 0), u)
    assert torch.allclose(guide(u, c, 3), c + 2 * (c - u), atol=1e-6)

def test_loss_counts_only_weighted_elements():
    diffusion, (x0, eps) = Diffusion("cosine", "x0"), torch.randn(2, 2, 1, 4)
    model = lambda xt, t: x0 + torch.tensor([1., 50., 1., 50.])
    loss = diffusion.loss(model, x0, torch.tensor([5, 900]), eps, torch.tensor([1., 0., 1., 0.]))
    assert torch.allclose(loss, torch.ones(2), atol=1e-4)

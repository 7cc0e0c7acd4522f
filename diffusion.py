"""Diffusion: noise schedules, the loss, guidance and three samplers.

A network that can tell what of x is noise can also take some away. Training: mix data with noise
at a random level t and ask for the noise, the data, or a blend of the two (v). Sampling: start from
pure noise x_T and step down the levels; at each, the network's guess of x0 says where to go.
"Ancestral" steps also add a little fresh noise, as the true reverse process does. DDIM and
DPM-Solver++ add none: they follow the probability-flow ODE, which ends in the same distribution.

Everything here sees the network only as a function model(x, t) -> prediction, so a closed form or
another library's network can be put in its place. x is whatever is diffused, of any shape (b ...);
t (b,) holds integers 0 ... 999, larger is noisier; alpha_bar falls from nearly 1 to nearly 0:

    xt = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps                                (DDPM Eq. 4)

Papers: DDPM (Ho et al. 2020, arXiv:2006.11239), improved DDPM (Nichol & Dhariwal 2021, 2102.09672),
DDIM (Song et al. 2021, 2010.02502), v-prediction (Salimans & Ho 2022, 2202.00512), classifier-free
guidance (Ho & Salimans 2022, 2207.12598), DPM-Solver++ (Lu et al. 2022, 2211.01095), trailing
timesteps (Lin et al. 2024, 2305.08891).
Run `python diffusion.py` to see the samplers land on a Gaussian whose ideal denoiser is known.
"""

import math

import torch

T = 1000  # noise levels (DDPM section 4)


def linear_alpha_bar(beta_first=1e-4, beta_last=0.02):
    """alpha_bar (1000,) in float64 of the linear schedule (DDPM section 4)."""
    return (1 - torch.linspace(beta_first, beta_last, T, dtype=torch.float64)).cumprod(0)


def cosine_alpha_bar(s=0.008, beta_max=0.999):
    """alpha_bar (1000,) in float64: cos^2((t/T + s)/(1 + s) pi/2), over its value at
    t = 0 (improved DDPM Eq. 17, whose t = 1 ... T is our 0 ... T - 1)."""
    u = torch.arange(T + 1, dtype=torch.float64) / T
    f = ((u + s) / (1 + s) * torch.pi / 2).cos() ** 2
    return (1 - (1 - f[1:] / f[:-1]).clamp(max=beta_max)).cumprod(0)


SCHEDULES = {"cosine": cosine_alpha_bar, "linear": linear_alpha_bar}
PREDICTIONS = ("v", "eps", "x0")
SAMPLERS = ("dpm", "ddim", "ddpm")


def guide(unconditional, conditional, scale):
    """Guided prediction: 0 is unconditional, 1 conditional; scale = 1 + w of Ho & Salimans Eq. 6.

    What the network says with the caption minus what it says without is the direction in which the
    caption pulls; a scale over 1 goes further that way, for more obedience and less variety.
    Exact for eps, v and x0 alike, because at a given xt each is an affine function of the others.
    """
    return unconditional + scale * (conditional - unconditional)


def timesteps(steps):
    """`steps` noise levels from 999 down, evenly spaced, "trailing" (Lin et al. Table 2): however
    few there are, the first is 999, the level that pure noise x_T really has."""
    if not 1 <= steps <= T:
        raise ValueError(f"steps is {steps}, but must be 1 ... {T}")
    return [round(T - T * i / steps) - 1 for i in range(steps)]


def jumps(steps):
    """The sampler's (t, t_prev): from each level to the next, less noisy one; at last to -1, which
    means no noise at all."""
    levels = timesteps(steps)
    return list(zip(levels, levels[1:] + [-1]))


class Noise:
    """Gaussian noise like x (b*k ...), k draws for each of b samples. Each sample has a stream of
    its own, a torch.Generator on the CPU, so it does not depend on its batch or device."""

    def __init__(self, streams):
        self.streams = list(streams)

    def __call__(self, x):
        k = len(x) // len(self.streams)
        draws = [torch.randn(k, *x.shape[1:], generator=stream) for stream in self.streams]
        return torch.cat(draws).to(x.device)


def replacement(diffusion, network, known, mask, eps):
    """The network with what is known of x (mask True) replaced by noised truth at every level (Song
    et al. 2021, score SDE, 2011.13456, appendix I.2), as in training. important: no loss ever asked
    what it says of known frames; left to it, they drift and lead the rest astray."""
    def predict(x, t):
        return network(torch.where(mask, diffusion.q_sample(known, t, eps), x), t)

    return predict


def every(x, t):
    """The level t for every sample of x (b ...): (b,), as networks expect it."""
    return torch.full(x.shape[:1], t, device=x.device)


class Diffusion:
    """A schedule and the meaning of the network's output: what training and sampling must share.

    schedule: "cosine" or "linear"; predict: "v", "eps" or "x0", what the network returns.
    """

    def __init__(self, schedule="cosine", predict="v"):
        if schedule not in SCHEDULES or predict not in PREDICTIONS:
            raise ValueError(f"unknown schedule {schedule!r} or prediction {predict!r}: choose "
                             f"from {list(SCHEDULES)} and {list(PREDICTIONS)}")
        self.alpha_bar, self.predict = SCHEDULES[schedule](), predict
        # index -1, "before step 0", has alpha_bar = 1: no noise at all
        clean = torch.cat([self.alpha_bar, self.alpha_bar.new_ones(1)])
        self.signal, self.noise = clean.sqrt(), (1 - clean).sqrt()

    # ---- the process, and three names for one prediction -----------------------------------------

    def scales(self, t, like):
        """a = sqrt(alpha_bar_t) and s = sqrt(1 - alpha_bar_t): for levels t (b,) shaped to multiply
        `like` (b ...), for one level t, an int that all share, two numbers.

        important: the tables are float64 and cast last. In float32, 1 - alpha_bar loses its digits
        near t = 0, and with them the small variances of the last steps. t = -1 is no noise at all.
        """
        if isinstance(t, int):
            return self.signal[t].item(), self.noise[t].item()
        shape = -1, *[1] * (like.ndim - 1)
        return [table.to(like.dtype).to(like.device)[t].reshape(shape)
                for table in (self.signal, self.noise)]

    def q_sample(self, x0, t, eps):
        """xt = √ᾱ·x0 + √(1−ᾱ)·ε   (DDPM Eq. 4)"""
        a, s = self.scales(t, x0)
        return a * x0 + s * eps

    def target(self, x0, t, eps):
        """What the network should return: ε, x0 or v = √ᾱ·ε − √(1−ᾱ)·x0  (Salimans & Ho, app. D)

        Near pure noise xt is nearly ε, so ε can be copied and says nothing of x0. Near clean data
        xt is nearly x0, and x0 can be copied. At either end v asks for what cannot be copied, and
        `to_x0_eps` never divides by a number near zero.
        """
        a, s = self.scales(t, x0)
        return {"eps": eps, "x0": x0, "v": a * eps - s * x0}[self.predict]

    def to_x0_eps(self, prediction, xt, t):
        """(x0, eps) from a prediction at xt: Eq. 4 solved for what is missing. Exact inverses.

        (xt, v) is (x0, eps) turned by an angle with cosine a and sine s, so v turns back.
        """
        a, s = self.scales(t, xt)
        if self.predict == "v":
            return a * xt - s * prediction, s * xt + a * prediction
        if self.predict == "x0":
            return prediction, (xt - a * prediction) / s
        return (xt - s * prediction) / a, prediction

    def loss(self, model, x0, t, eps, weight=None):
        """The simple loss (DDPM Eq. 14, there for eps), one value a sample: (b,).

        weight: broadcastable to x0, 1 where an element counts and 0 where not; None counts all.
        """
        error = (model(self.q_sample(x0, t, eps), t) - self.target(x0, t, eps)).float() ** 2
        weight = torch.ones_like(error) if weight is None else weight.expand_as(error)
        return (error * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1)

    def posterior(self, x0, xt, t, t_prev):
        """Mean and variance of q(x_prev | xt, x0)   (DDPM Eq. 6 and 7), for any t_prev < t."""
        a, s = self.scales(t, xt)
        a_prev, s_prev = self.scales(t_prev, xt)
        alpha = (a / a_prev) ** 2  # of the whole jump t_prev -> t; 1 - alpha is its beta
        mean = (a_prev * (1 - alpha) * x0 + (a / a_prev) * s_prev ** 2 * xt) / s ** 2
        return mean, s_prev ** 2 / s ** 2 * (1 - alpha)

    # ---- samplers: one signature, sampler(model, x_T, steps) -> x0 -------------------------------

    @torch.no_grad()
    def ddpm(self, model, x_T, steps, noise=torch.randn_like):
        """Ancestral sampling (DDPM Alg. 2) over the jumps between levels, posterior variance β̃."""
        x = x_T
        for t, t_prev in jumps(steps):
            x0, _ = self.to_x0_eps(model(x, every(x, t)), x, t)
            mean, variance = self.posterior(x0, x, t, t_prev)
            x = mean + variance ** 0.5 * noise(x)  # variance 0 in the last step: it adds no noise
        return x

    @torch.no_grad()
    def ddim(self, model, x_T, steps, eta=0.0, noise=torch.randn_like):
        """DDIM (Song et al. Eq. 12 and 16): deterministic at eta 0, DDPM's variance at eta 1."""
        x = x_T
        for t, t_prev in jumps(steps):
            x0, eps = self.to_x0_eps(model(x, every(x, t)), x, t)
            a_prev, s_prev = self.scales(t_prev, x)
            _, variance = self.posterior(x0, x, t, t_prev)
            sigma = eta * variance ** 0.5
            x = a_prev * x0 + max(0.0, s_prev ** 2 - sigma ** 2) ** 0.5 * eps
            if eta:
                x = x + sigma * noise(x)
        return x

    @torch.no_grad()
    def dpm(self, model, x_T, steps, eta=0.0, noise=torch.randn_like):
        """DPM-Solver++(2M) (Lu et al. 2022 Alg. 2), the midpoint form: second order in the
        half log-SNR λ = log(√ᾱ / √(1−ᾱ)), first order at the first and the last step. With eta 1
        its SDE form, which forgets a part of x at each step and draws fresh noise for it."""
        x, x0_last, h_last = x_T, None, None  # each step, h long in λ: x' = s'/s·x − a'·(e⁻ʰ−1)·D
        for t, t_prev in jumps(steps):
            x0, _ = self.to_x0_eps(model(x, every(x, t)), x, t)
            if t_prev == -1:
                return x0                  # λ is infinite at ᾱ = 1: all that is left is x0
            a, s = self.scales(t, x)
            a_prev, s_prev = self.scales(t_prev, x)
            h = math.log(a_prev / s_prev) - math.log(a / s)
            d = x0                         # x0 at the middle of the step, by extrapolation
            if x0_last is not None:
                half = h / (2 * h_last)    # of this step, in steps like the last
                d = (1 + half) * x0 - half * x0_last
            x = s_prev / s * math.exp(-eta * h) * x - a_prev * math.expm1(-(1 + eta) * h) * d
            if eta:
                x = x + s_prev * (-math.expm1(-2 * eta * h)) ** 0.5 * noise(x)
            x0_last, h_last = x0, h


if __name__ == "__main__":
    mean, std, n = 2.0, 0.5, 20_000
    diffusion = Diffusion("cosine", "v")

    def ideal(x, t):
        """v of E[x0 | xt] where x0 ~ N(mean, std^2): the best any network could learn."""
        a, s = diffusion.scales(t, x)
        x0 = mean + a * std ** 2 * (x - a * mean) / (a ** 2 * std ** 2 + s ** 2)
        return (a * x - x0) / s

    torch.manual_seed(0)
    x_T = torch.randn(n, 1, dtype=torch.float64)
    print(f"truth          mean {mean:.3f}  std {std:.3f}")
    for name in SAMPLERS:
        for steps in (5, 20, 100):
            x = getattr(diffusion, name)(ideal, x_T, steps)
            print(f"{name:5s}{steps:4d} steps  mean {x.mean():.3f}  std {x.std():.3f}")
    print("\nx0 = 1 on its way to noise (alpha_bar, then xt with eps = -1):")
    for t in (0, 250, 500, 750, 999):
        one = torch.ones(1, 1)
        xt = diffusion.q_sample(one, torch.tensor([t]), -one)
        print(f"  t {t:3d}  alpha_bar {diffusion.alpha_bar[t]:.5f}  xt {xt.item():+.3f}")

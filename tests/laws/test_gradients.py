"""Law 1, the gradients: ranks with different rows give, on average, the gradient of one process with all rows."""

from functools import cache

import pytest
import torch
from ranks import run_ranks

from lit_ssl import distributed, losses
from lit_ssl.random import step_key

ROWS = 12
SHARDS = {2: [(6, 6), (4, 8)], 3: [(4, 4, 4), (7, 0, 5)]}  # equal and unequal ones, and a rank without a row
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
CAPTIONS = torch.tensor([0, 1, 2, 3, 1, 5, 0, 1, 8, 9, 10, 5])  # equal ones on different ranks


def draw(*shape, seed, dtype):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def pairs(loss, queue=False, **options):
    """A loss of two codes of each row."""

    def value(rows, learned, dtype, **dense):
        past = {"queue": draw(6, 4, seed=2, dtype=dtype)} if queue else {}
        codes = (draw(ROWS, 5, seed=seed, dtype=dtype)[rows] @ learned["weight"] for seed in (0, 1))
        return loss(*codes, **past, **{**options, **dense})

    return value


def captioned(loss, duplicates=False, **options):
    def value(rows, learned, dtype, **dense):
        same = {"duplicates": CAPTIONS[rows]} if duplicates else {}
        codes = (draw(ROWS, 5, seed=seed, dtype=dtype)[rows] @ learned["weight"] for seed in (0, 1))
        logits = {name: learned[name] for name in ("logit_scale", "logit_bias") if name in learned}
        return loss(*codes, **logits, **same, **{**options, **dense})

    return value


def gaussian(rows, learned, dtype):
    z = draw(2, ROWS, 5, seed=0, dtype=dtype)[:, rows] @ learned["weight"] * 0.6
    return losses.sigreg(z, key=step_key(0, 5), num_directions=7)


def patches(rows, learned, dtype):
    mask = draw(ROWS, 4, seed=2, dtype=dtype)[rows] > 0.3  # of unequal size
    x, target = (draw(ROWS, 4, size, seed=size, dtype=dtype)[rows] for size in (5, 4))
    return losses.masked_mse(x @ learned["weight"], target, mask)


def autoencoder(bound, **options):
    def value(rows, learned, dtype):
        x = draw(ROWS, 5, seed=0, dtype=dtype)[rows] * 0.4
        mean, log_variance = (x @ learned["weight"]).chunk(2, 1)
        mean = mean * mean.new_tensor([0.3, 1.0])  # one latent below the free bits, one above
        z = mean + (log_variance / 2).exp() * draw(2, ROWS, 2, seed=1, dtype=dtype)[:, rows]
        output = (z @ learned["weight"][:, :2].T)[:, :, None, None]
        likelihood = losses.gaussian_log_likelihood(output, x[:, None, None], 0.0)
        if bound is losses.elbo:
            return losses.elbo(likelihood[0], mean, log_variance, **options).loss
        return losses.iwae_bound(losses.log_importance_weight(likelihood, z, mean, log_variance))

    return value


HARD = {"beta": 1.0, "tau_plus": 0.1}
CASES = {
    "nt_xent": pairs(losses.nt_xent, temperature=0.2),
    "nt_xent hard": pairs(losses.nt_xent, temperature=0.2, **HARD),
    "nt_xent decoupled": pairs(losses.nt_xent, temperature=0.2, decoupled=True),
    "nt_xent chunked": pairs(losses.nt_xent, temperature=0.2, chunk_size=3),
    "nt_xent chunked hard": pairs(losses.nt_xent, temperature=0.2, chunk_size=3, decoupled=True, **HARD),
    "info_nce": pairs(losses.info_nce, temperature=0.2),
    "info_nce hard": pairs(losses.info_nce, temperature=0.2, **HARD),
    "info_nce decoupled": pairs(losses.info_nce, temperature=0.2, decoupled=True),
    "info_nce spherical": pairs(losses.info_nce, temperature=0.1, kappa=1 / 64),
    "info_nce chunked": pairs(losses.info_nce, temperature=0.2, chunk_size=3),
    "info_nce queue": pairs(losses.info_nce, queue=True, temperature=0.2),
    "info_nce queue chunked hard": pairs(losses.info_nce, queue=True, temperature=0.2, chunk_size=3, **HARD),
    "cosine_contrast": pairs(losses.cosine_contrast),
    "cosine_contrast chunked": pairs(losses.cosine_contrast, chunk_size=3),
    "clip_loss": captioned(losses.clip_loss),
    "clip_loss hard": captioned(losses.clip_loss, beta=1.0),
    "clip_loss duplicates": captioned(losses.clip_loss, duplicates=True),
    "clip_loss duplicates chunked": captioned(losses.clip_loss, duplicates=True, chunk_size=3, beta=1.0),
    "siglip_loss": captioned(losses.siglip_loss),
    "siglip_loss duplicates": captioned(losses.siglip_loss, duplicates=True),
    "siglip_loss duplicates chunked": captioned(losses.siglip_loss, duplicates=True, chunk_size=3),
    "sigreg": gaussian,
    "masked_mse": patches,
    "elbo": autoencoder(losses.elbo),
    "elbo free bits": autoencoder(losses.elbo, beta=4.0, free_bits=0.15),
    "iwae_bound": autoencoder(losses.iwae_bound),
}
ROW_BY_ROW = {"bernoulli_log_likelihood", "gaussian_kl", "gaussian_log_likelihood", "log_importance_weight"}
ROW_BY_ROW |= {"normalize_patches"}


def gradients(name, rows, dtype, chunks=True):
    """The value of a loss of some rows, and its gradient with respect to all that learns."""
    learned = {"weight": draw(5, 4, seed=3, dtype=dtype)}
    if name.startswith(("clip", "siglip")):
        learned["logit_scale"] = torch.tensor(4.0, dtype=dtype)
    if name.startswith("siglip"):
        learned["logit_bias"] = torch.tensor(-1.0, dtype=dtype)
    for parameter in learned.values():
        parameter.requires_grad_()
    dense = {"chunk_size": None} if "chunked" in name and not chunks else {}
    value = CASES[name](rows, learned, dtype, **dense)
    value.backward()
    return {"value": value.detach()} | {name: parameter.grad for name, parameter in learned.items()}


# Mistakes that the comparison has to find


def own_slice(ctx, *grads):
    return grads[0][ctx.start : ctx.start + ctx.rows], None  # what other ranks want of these rows is lost


def detached(ctx, *grads):
    return torch.zeros_like(grads[0][ctx.start : ctx.start + ctx.rows]), None


def forgetful():
    return False


MISTAKES = {
    "own_slice": (distributed._Gather, "backward", staticmethod(own_slice)),
    "detached": (distributed._Gather, "backward", staticmethod(detached)),
    "unsummed": (distributed._AllReduceSum, "backward", staticmethod(lambda ctx, *grads: grads[0])),
    "forgetful": (distributed, "_active", forgetful),
}


def caught_by(name):
    """The mistakes that change a loss: those of the gather, only where it gathers codes."""
    if name in ("sigreg", "elbo free bits"):
        return ("unsummed", "forgetful")
    if name.split()[0] in ("masked_mse", "elbo", "iwae_bound") or "queue" in name:
        return ("forgetful",)
    return ("own_slice", "detached", "forgetful")


def on_rank(rank, world):
    assert distributed.world_size() == world
    assert distributed.rank() == rank
    found = {}
    for shards in SHARDS[world]:
        start = sum(shards[:rank])
        rows = slice(start, start + shards[rank])
        for dtype in TOLERANCE:
            found |= {f"{name} {shards} {dtype}": gradients(name, rows, dtype) for name in CASES}
    for mistake, (owner, attribute, wrong) in MISTAKES.items():
        right = vars(owner)[attribute]
        setattr(owner, attribute, wrong)
        for name in CASES:
            if mistake in caught_by(name):
                found[f"{name} {mistake}"] = gradients(name, rows, torch.float64)
        setattr(owner, attribute, right)
    return found


@cache
def averages(world):
    """What DDP makes of the gradients of all ranks; one start of processes for all tests of one world."""
    ranks = run_ranks(on_rank, world)
    return {case: {k: torch.stack([r[case][k] for r in ranks]).mean(0) for k in ranks[0][case]} for case in ranks[0]}


def error(found, expected):
    """Of all gradients: how far off, against their length."""
    return max(((found[k] - expected[k]).norm() / expected[k].norm().clamp(min=1e-30)).item() for k in expected)


WORLDS = pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])


@WORLDS
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_ranks_average_to_the_single_process(world, dtype):
    for name in CASES:  # blocks of rows, gathered, against all rows at once in one process
        expected = gradients(name, slice(None), dtype, chunks=False)
        for shards in SHARDS[world]:
            off = error(averages(world)[f"{name} {shards} {dtype}"], expected)
            assert off <= TOLERANCE[dtype], f"{name}, {shards}: {off:.1e}"


@WORLDS
def test_a_wrong_gather_would_be_caught(world):
    for name in CASES:
        expected = gradients(name, slice(None), torch.float64)
        for mistake in caught_by(name):
            off = error(averages(world)[f"{name} {mistake}"], expected)
            assert off > 1e-2, f"{name}, {mistake}: {off:.1e}"


def test_every_loss_is_listed():
    assert {name.split()[0] for name in CASES} | ROW_BY_ROW == set(losses.__all__)

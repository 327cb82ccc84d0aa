"""Exercises of notebook 04: nested dropout."""

from collections.abc import Iterator

import torch
from torch import Tensor

from . import Exercise

# ---- ★ the error of each prefix of principal components ------------------------------------------


def spectra(g: torch.Generator) -> Iterator[tuple]:
    for D in (3, 2, 5, 8):
        values = 0.1 + 4 * torch.rand(D, generator=g)
        yield (torch.cat([values[1:].sort().values, values[:1]]),)  # not sorted


def prefix_errors(eigenvalues: Tensor) -> Tensor:
    largest_first = sorted(eigenvalues.tolist(), reverse=True)
    return torch.tensor([sum(largest_first[k:]) for k in range(len(largest_first) + 1)])


def not_sorted(eigenvalues: Tensor) -> Tensor:
    return torch.tensor([eigenvalues[k:].sum().item() for k in range(len(eigenvalues) + 1)])


def smallest_first(eigenvalues: Tensor) -> Tensor:
    return not_sorted(eigenvalues.sort().values)


def kept_variance(eigenvalues: Tensor) -> Tensor:
    return eigenvalues.sum() - prefix_errors(eigenvalues)


def without_k_0(eigenvalues: Tensor) -> Tensor:
    return prefix_errors(eigenvalues)[1:]


# ---- ★ the probability that a register is kept ---------------------------------------------------


def distributions(g: torch.Generator) -> Iterator[tuple]:
    for K in (3, 1, 4, 7):
        p = torch.rand(K, generator=g)
        yield (p / p.sum(),)


def kept_prob(p: Tensor) -> Tensor:
    out = torch.zeros(len(p))
    for j in range(len(p)):
        for k in range(1, len(p) + 1):
            if j < k:
                out[j] += p[k - 1]
    return out


def kept_off_by_one(p: Tensor) -> Tensor:
    return kept_prob(p) - p


def dropped_prob(p: Tensor) -> Tensor:
    return 1 - kept_prob(p)


def shorter_draws(p: Tensor) -> Tensor:
    return p.cumsum(0)


def only_the_last(p: Tensor) -> Tensor:
    return p


# ---- ★★ registers with the mask token ------------------------------------------------------------


def registers(g: torch.Generator) -> Iterator[tuple]:
    for B, K, D in ((2, 3, 2), (3, 4, 3), (4, 6, 2), (2, 5, 4)):
        keep_k = torch.randint(1, K, (B,), generator=g)
        keep_k[-1] = K if keep_k[0] < K - 1 else 1  # different lengths
        draw = [torch.randn(*shape, generator=g) for shape in ((B, K, D), (K, D), (D,))]
        yield (*draw, keep_k)
    draw = [torch.randn(*shape, generator=g) for shape in ((2, 5, 2), (5, 2), (2,))]
    yield (*draw, torch.tensor([1, 3]))  # no image keeps all


def embed(registers: Tensor, positions: Tensor, mask_token: Tensor, keep_k: Tensor) -> Tensor:
    out = registers.clone()
    for b in range(len(registers)):
        for j in range(len(positions)):
            out[b, j] = registers[b, j] + positions[j] if j < keep_k[b] else mask_token
    return out


def masked_before_positions(
    registers: Tensor, positions: Tensor, mask_token: Tensor, keep_k: Tensor
) -> Tensor:
    return embed(registers, 0 * positions, mask_token, keep_k) + positions


def no_positions(
    registers: Tensor, positions: Tensor, mask_token: Tensor, keep_k: Tensor
) -> Tensor:
    return embed(registers, 0 * positions, mask_token, keep_k)


def one_k_for_all(
    registers: Tensor, positions: Tensor, mask_token: Tensor, keep_k: Tensor
) -> Tensor:
    return embed(registers, positions, mask_token, keep_k[:1].expand(len(keep_k)))


def kept_and_dropped_exchanged(
    registers: Tensor, positions: Tensor, mask_token: Tensor, keep_k: Tensor
) -> Tensor:
    kept = torch.arange(len(positions)) < keep_k[:, None]
    return torch.where(kept[..., None], mask_token, registers + positions)


def zeroed(registers: Tensor, positions: Tensor, mask_token: Tensor, keep_k: Tensor) -> Tensor:
    return embed(registers, positions, 0 * mask_token, keep_k)


def appended(registers: Tensor, positions: Tensor, mask_token: Tensor, keep_k: Tensor) -> Tensor:
    left = zeroed(registers, positions, mask_token, keep_k)
    return torch.cat([left, mask_token.expand(len(left), 1, -1)], dim=1)


def one_too_many(
    registers: Tensor, positions: Tensor, mask_token: Tensor, keep_k: Tensor
) -> Tensor:
    return embed(registers, positions, mask_token, keep_k + 1)


# ---- ★★ the loss of a linear autoencoder, without sampling ---------------------------------------


def autoencoders(g: torch.Generator) -> Iterator[tuple]:
    for D, K in ((2, 2), (3, 2), (4, 3), (5, 5)):
        root, enc, dec = (torch.randn(*shape, generator=g) for shape in ((D, D), (K, D), (D, K)))
        p = torch.rand(K, generator=g) + torch.arange(K)
        yield root @ root.T, enc, dec, p / p.sum()


def prefix_loss(cov: Tensor, enc: Tensor, dec: Tensor, weight: Tensor) -> Tensor:
    """E|x - dec (weight * enc x)|^2, as a sum over all entries."""
    D, total = len(cov), torch.zeros(())
    left = torch.eye(D) - dec @ torch.diag(weight) @ enc
    for i in range(D):
        for a in range(D):
            for b in range(D):
                total = total + left[i, a] * cov[a, b] * left[i, b]
    return total


def expected_loss(cov: Tensor, enc: Tensor, dec: Tensor, p: Tensor) -> Tensor:
    return sum(
        p[k - 1] * prefix_loss(cov, enc, dec, (torch.arange(len(p)) < k).float())
        for k in range(1, len(p) + 1)
    )


def mean_mask(cov: Tensor, enc: Tensor, dec: Tensor, p: Tensor) -> Tensor:
    return prefix_loss(cov, enc, dec, kept_prob(p))


def rescaled(cov: Tensor, enc: Tensor, dec: Tensor, p: Tensor) -> Tensor:
    return expected_loss(cov, enc, dec / kept_prob(p), p)


def equal_weights(cov: Tensor, enc: Tensor, dec: Tensor, p: Tensor) -> Tensor:
    return expected_loss(cov, enc, dec, torch.full_like(p, 1 / len(p)))


def captured_only(cov: Tensor, enc: Tensor, dec: Tensor, p: Tensor) -> Tensor:
    prefixes = [dec[:, :k] @ enc[:k] for k in range(1, len(p) + 1)]
    return sum(q * (M @ cov @ M.T).trace() for q, M in zip(p, prefixes, strict=True))


def second_factor_missing(cov: Tensor, enc: Tensor, dec: Tensor, p: Tensor) -> Tensor:
    prefixes = [dec[:, :k] @ enc[:k] for k in range(1, len(p) + 1)]
    return sum(q * (cov.trace() - (M @ cov).trace()) for q, M in zip(p, prefixes, strict=True))


def single_units(cov: Tensor, enc: Tensor, dec: Tensor, p: Tensor) -> Tensor:
    return sum(
        p[k - 1] * prefix_loss(cov, enc, dec, (torch.arange(len(p)) == k - 1).float())
        for k in range(1, len(p) + 1)
    )


def one_unit_less(cov: Tensor, enc: Tensor, dec: Tensor, p: Tensor) -> Tensor:
    return sum(
        p[k] * prefix_loss(cov, enc, dec, (torch.arange(len(p)) < k).float()) for k in range(len(p))
    )


# ---- ★★★ the same for orthonormal units, as one sum ----------------------------------------------


def orthonormal_units(g: torch.Generator) -> Iterator[tuple]:
    for D, K in ((2, 2), (3, 2), (4, 3), (4, 4)):
        root = torch.randn(D, D, generator=g)
        units = torch.linalg.qr(torch.randn(D, D, generator=g))[0][:K]
        p = torch.rand(K, generator=g)
        yield root @ root.T, units, kept_prob(p / p.sum())


def drawn(q: Tensor) -> Tensor:
    """p (K,) with p[k - 1] = P(keep_k = k), from q (K,) with q[j] = P(unit j is kept)."""
    return q - torch.cat([q[1:], torch.zeros(1)])


def orthonormal_loss(cov: Tensor, units: Tensor, q: Tensor) -> Tensor:
    return expected_loss(cov, units, units.T, drawn(q))


def without_trace(cov: Tensor, units: Tensor, q: Tensor) -> Tensor:
    return orthonormal_loss(cov, units, q) - cov.trace()


def captured_variance(cov: Tensor, units: Tensor, q: Tensor) -> Tensor:
    return cov.trace() - orthonormal_loss(cov, units, q)


def weighted_by_p(cov: Tensor, units: Tensor, q: Tensor) -> Tensor:
    return cov.trace() - sum(w * (u @ cov @ u) for w, u in zip(drawn(q), units, strict=True))


def not_weighted(cov: Tensor, units: Tensor, q: Tensor) -> Tensor:
    return orthonormal_loss(cov, units, torch.ones_like(q))


def one_loss_of_the_mean_mask(cov: Tensor, units: Tensor, q: Tensor) -> Tensor:
    return mean_mask(cov, units, units.T, drawn(q))


def loss_of_the_best_units(cov: Tensor, units: Tensor, q: Tensor) -> Tensor:
    best = torch.linalg.eigh(cov).eigenvectors.flip(1).T[: len(q)]
    return orthonormal_loss(cov, best, q)


EXERCISES = {
    "prefix_errors": Exercise(
        spectra,
        prefix_errors,
        [
            (
                not_sorted,
                "the first principal component has the LARGEST eigenvalue; you used the "
                "eigenvalues in the given order.",
            ),
            (
                smallest_first,
                "you kept the SMALLEST eigenvalues first. The best first component is that of "
                "the largest.",
            ),
            (
                kept_variance,
                "this is the variance that the first k components keep. The error is the "
                "variance of the other components.",
            ),
            (
                without_k_0,
                "k = 0 is a prefix too: nothing is kept, and the error is the whole variance. "
                "Return D + 1 numbers.",
            ),
            (
                lambda eigenvalues: prefix_errors(eigenvalues)[:-1],
                "k = D is a prefix too: everything is kept, and the error is 0. Return D + 1 "
                "numbers.",
            ),
            (
                lambda eigenvalues: prefix_errors(eigenvalues).flip(0),
                "the order is reversed: the first number belongs to k = 0, where the error "
                "is largest.",
            ),
            (
                lambda eigenvalues: prefix_errors(eigenvalues) / len(eigenvalues),
                "this is divided by D. The error is the squared length of the residual, "
                "summed over all D values.",
            ),
            (
                lambda eigenvalues: torch.cat(
                    [eigenvalues.sort(descending=True).values, torch.zeros(1)]
                ),
                "this is the next eigenvalue alone. The error is the sum of ALL remaining "
                "eigenvalues.",
            ),
        ],
    ),
    "kept_prob": Exercise(
        distributions,
        kept_prob,
        [
            (
                kept_off_by_one,
                "off by one: j counts from 0, so keep_k = k keeps registers 0 to k - 1, and "
                "register 0 is always kept.",
            ),
            (dropped_prob, "this is the probability that each register is dropped."),
            (
                shorter_draws,
                "you added the probabilities of the shorter lengths. Register j is kept by the "
                "longer ones, k > j.",
            ),
            (
                only_the_last,
                "p[k - 1] is the probability of drawing k. Register j is kept by every k that "
                "is larger than j.",
            ),
            (
                lambda p: kept_prob(p).flip(0),
                "the order is reversed: register 0 is always kept, so the first probability is 1.",
            ),
            (
                lambda p: 1 - torch.arange(len(p)) / len(p),
                "this holds for a uniform keep_k only. Use the given p.",
            ),
        ],
    ),
    "embed": Exercise(
        registers,
        embed,
        [
            (
                masked_before_positions,
                "the mask token was inserted before the positions were added, so a dropped "
                "register still has its position. Add positions first, then replace.",
            ),
            (
                no_positions,
                "the kept registers have no position: kept registers are registers + positions.",
            ),
            (
                one_k_for_all,
                "all images got the k of the first one. keep_k[:, None] compares each row with "
                "its own k.",
            ),
            (
                zeroed,
                "the dropped registers became zero. They become the mask token, which is learned.",
            ),
            (
                appended,
                "one mask token was appended. Each dropped register is REPLACED by it: the "
                "length stays K.",
            ),
            (
                one_too_many,
                "off by one: registers 0 to k - 1 are kept, so register k is the first dropped "
                "one.",
            ),
            (
                kept_and_dropped_exchanged,
                "kept and dropped registers are exchanged: the first k are kept.",
            ),
            (
                lambda r, p, m, k: zeroed(r, p, m, k) + m,
                "the mask token was also added to the kept registers. It replaces dropped "
                "ones and leaves kept ones as they are.",
            ),
            (
                lambda r, p, m, k: embed(r, p, m, k)[:, : int(k.max())],
                "the registers after the largest k were cut off. Dropped registers stay in "
                "the sequence: the length is K.",
            ),
        ],
    ),
    "expected_loss": Exercise(
        autoencoders,
        expected_loss,
        [
            (
                mean_mask,
                "you averaged the mask and then computed one loss. The mean of squares is not "
                "the square of the mean: compute the loss of each prefix, then average.",
            ),
            (
                rescaled,
                "kept units are divided by their probability, as in ordinary dropout. Nested "
                "dropout does not rescale: prefixes are used at test time too.",
            ),
            (
                equal_weights,
                "every prefix has the same weight. The weight of prefix k is p[k - 1].",
            ),
            (one_unit_less, "off by one: p[0] belongs to k = 1, where one unit is kept, not none."),
            (
                lambda cov, enc, dec, p: prefix_loss(cov, enc, dec, torch.ones(len(p))),
                "this is the loss with all units. Average the losses of all prefixes, with "
                "the weights p.",
            ),
            (
                captured_only,
                "the matrix is M_k here. The error of a reconstruction is (I - M_k) x.",
            ),
            (
                second_factor_missing,
                "the second factor is missing: tr((I - M) C (I - M)^T). The short form "
                "tr((I - M) C) holds only if M is an orthogonal projection.",
            ),
            (
                single_units,
                "each term has unit k alone. Prefix k has the units 1 to k: dec[:, :k] @ enc[:k].",
            ),
        ],
    ),
    "orthonormal_loss": Exercise(
        orthonormal_units,
        orthonormal_loss,
        [
            (
                without_trace,
                "the constant is missing: the loss is tr C minus the variance that the kept "
                "units capture.",
            ),
            (
                captured_variance,
                "this is the variance that the kept units capture. The loss is tr C minus it.",
            ),
            (
                weighted_by_p,
                "you weighted unit j by the probability that k = j. Unit j is kept by every k >= "
                "j, so its weight is q[j].",
            ),
            (
                not_weighted,
                "every unit has weight 1, as if all were always kept. The weight of unit j is "
                "q[j].",
            ),
            (
                one_loss_of_the_mean_mask,
                "you scaled unit j by q[j] and then computed one loss, which gives 2 q - q^2 in "
                "place of q. Average the losses, not the masks.",
            ),
            (
                lambda cov, units, q: orthonormal_loss(cov, units, q**2),
                "the weight of unit j is q[j], not its square: a mask is 0 or 1, so the mean of "
                "its square is q[j], too.",
            ),
            (
                loss_of_the_best_units,
                "this is the loss of the best units, with the eigenvalues of C. Use the given "
                "units: w_j^T C w_j.",
            ),
            (
                lambda cov, units, q: 2 * cov.trace() - orthonormal_loss(cov, units, q),
                "the sign is wrong: the variance that the units capture is subtracted from tr C.",
            ),
            (
                lambda cov, units, q: ((1 - q) * (units @ cov * units).sum(1)).sum(),
                "the part of C outside the units is missing: with fewer units than "
                "dimensions, some variance is never captured. Start from tr C.",
            ),
        ],
    ),
}

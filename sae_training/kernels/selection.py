"""The highest scores of a batch or of each row, exactly and without waiting for the device.

Positive floats have the order of their bits. The cut, which is the n-th highest score, is found from the top in steps
of 8 bits. Each step counts the scores by their next 8 bits, among those that agree with the bits found so far, and
takes the highest value with enough scores at or above it. A last pass writes the entries above the cut, in the order of
rows and then of latents, and the first entries equal to it until there are n. The size of the result is thus known in
advance.
"""

from dataclasses import dataclass

import torch
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sae_training.kernels.products import kernel, on_device_of

DIGIT_BITS = 8
N_DIGITS = 1 << DIGIT_BITS
COUNT_BLOCK, WRITE_BLOCK = 2048, 1024


@dataclass(frozen=True)
class Kept:
    """The selected entries, in the order of rows and then of latents.

    Unused places are at the end, with column ``d_sae`` and score 0.

    Attributes:
        scores: Score of each entry.
        rows: Row of each entry.
        columns: Latent of each entry.
        row_begin: First entry of each row.
        row_end: End of the entries of each row (exclusive).
        cut: Smallest selected score, one per row or one for the batch; 0 if all positive scores are selected.
    """

    scores: Float[Tensor, " entries"]
    rows: Int[Tensor, " entries"]
    columns: Int[Tensor, " entries"]
    row_begin: Int[Tensor, " batch"]
    row_end: Int[Tensor, " batch"]
    cut: Float[Tensor, " groups"]


@kernel
def _count_digits(scores, prefix, counts, n_columns, SHIFT: tl.constexpr, FIRST: tl.constexpr, PER_ROW: tl.constexpr, BITS: tl.constexpr, DIGITS: tl.constexpr, KEY: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip  # noqa: PLR0913
    row = tl.program_id(0).to(tl.int64)
    found = tl.load(prefix + row) if PER_ROW else tl.load(prefix)
    total = tl.zeros((DIGITS,), tl.int32)
    for start in range(0, n_columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        score = tl.load(scores + row * n_columns + column, mask=column < n_columns, other=0.0)
        key = _key(score, KEY)
        matches = score > 0
        if not FIRST:
            matches = matches & ((key >> (SHIFT + BITS)).to(tl.int64) == found)
        digit = ((key >> SHIFT) & (DIGITS - 1)).to(tl.int32)
        total += tl.histogram(digit, DIGITS, mask=matches)
    tl.store(counts + row * DIGITS + tl.arange(0, DIGITS), total)


@kernel
def _key(score, KEY: tl.constexpr):
    wide = score if score.dtype == tl.float64 else score.to(tl.float32)
    return wide.to(KEY, bitcast=True)


@kernel
def _pick_digit(counts, wanted, prefix, digits, DIGITS: tl.constexpr):
    group = tl.program_id(0).to(tl.int64)
    digit = tl.arange(0, DIGITS)
    count = tl.load(counts + group * DIGITS + digit).to(tl.int64)
    n_wanted = tl.load(wanted + group)
    at_or_above = tl.sum(count, axis=0) - tl.cumsum(count, axis=0) + count
    best = tl.sum((at_or_above >= n_wanted).to(tl.int64), axis=0) - 1
    above = tl.sum(tl.where(digit > best, count, 0), axis=0)
    found = tl.load(prefix + group) * DIGITS + best
    # There are fewer positive scores than wanted: -1 matches no score in the following steps.
    tl.store(prefix + group, tl.where(best < 0, -1, found))
    tl.store(wanted + group, tl.where(best < 0, n_wanted, n_wanted - above))
    tl.store(digits + group, best)


@kernel
def _write_entries(scores, cut, row_begin, room, out_scores, out_rows, out_columns, n_columns, PER_ROW: tl.constexpr, KEY: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip  # noqa: PLR0913
    row = tl.program_id(0).to(tl.int64)
    cut_key = tl.load(cut + row) if PER_ROW else tl.load(cut)
    n_ties_kept = tl.load(room + row)
    first_free = tl.load(row_begin + row)
    n_ties = n_ties_kept * 0
    for start in range(0, n_columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        score = tl.load(scores + row * n_columns + column, mask=column < n_columns, other=0.0)
        key = _key(score, KEY).to(tl.int64)
        positive = score > 0
        tie = positive & (key == cut_key)
        rank = n_ties + tl.cumsum(tie.to(tl.int32), axis=0)
        keep = (positive & (key > cut_key)) | (tie & (rank <= n_ties_kept))
        place = first_free + tl.cumsum(keep.to(tl.int32), axis=0) - 1
        tl.store(out_scores + place, score, mask=keep)
        tl.store(out_rows + place, (column * 0 + row).to(tl.int32), mask=keep)
        tl.store(out_columns + place, column, mask=keep)
        n_ties += tl.sum(tie.to(tl.int32), axis=0)
        first_free += tl.sum(keep.to(tl.int32), axis=0)


def highest(scores: Float[Tensor, "batch d_sae"], n_kept: int, *, per_row: bool) -> Kept:
    """The ``n_kept`` highest positive scores of the batch or of each row, or all of them if there are fewer.

    Scores equal to the cut are kept in the order of rows and then of latents, until there are ``n_kept``. The host does
    not wait for the device.
    """
    scores = scores.contiguous()
    n_rows = scores.shape[0]
    n_groups = n_rows if per_row else 1
    key_bits, used_bits, key_type, bits_type = _key_layout(scores.dtype)
    prefix = scores.new_zeros(n_groups, dtype=torch.int64)
    wanted = torch.full_like(prefix, n_kept)
    digits = torch.empty_like(prefix)
    above = scores.new_zeros(n_rows, dtype=torch.int64)
    ties = torch.zeros_like(above)
    counts = scores.new_empty((n_rows, N_DIGITS), dtype=torch.int32)
    number = torch.arange(N_DIGITS, device=scores.device)
    for done in range(0, used_bits, DIGIT_BITS):
        shift = key_bits - done - DIGIT_BITS
        _count(scores, prefix, counts, shift=shift, first=done == 0, per_row=per_row, key_type=key_type)
        summed = counts if per_row else counts.sum(dim=0, keepdim=True)
        with on_device_of(scores):
            _pick_digit[(n_groups,)](summed, wanted, prefix, digits, DIGITS=N_DIGITS)
        above += torch.where(number > digits[:, None], counts, 0).sum(dim=1)
        ties = torch.where(number == digits[:, None], counts, 0).sum(dim=1)
    cut_key = torch.where(prefix < 0, -1, prefix << (key_bits - used_bits))
    free = wanted if per_row else wanted - (ties.cumsum(0) - ties)
    room = torch.minimum(free.clamp(min=0), ties)
    cut = cut_key.clamp(min=0).to(bits_type).view(torch.float64 if key_bits == 64 else torch.float32)
    n_entries = n_kept * n_groups
    return _write(scores, cut_key, cut.to(scores.dtype), above + room, room, n_entries, per_row=per_row)


def at_or_above(
    scores: Float[Tensor, "batch d_sae"], cut: Float[Tensor, " groups"], n_kept: int, *, per_row: bool
) -> Kept:
    """The positive scores at or above a known cut of the batch or of each row, but at most ``n_kept`` of each.

    Scores equal to the cut are kept as in `highest`. The host does not wait for the device.
    """
    scores = scores.contiguous()
    key_bits, _, _, bits_type = _key_layout(scores.dtype)
    cut = cut.clamp(min=0)
    bound = cut[:, None].to(scores.dtype)
    above = (scores > bound).sum(dim=1)
    ties = ((scores == bound) & (scores > 0)).sum(dim=1)
    free = n_kept - above if per_row else n_kept - above.sum() - (ties.cumsum(0) - ties)
    room = torch.minimum(free.clamp(min=0), ties)
    cut_key = cut.to(torch.float64 if key_bits == 64 else torch.float32).view(bits_type).long()
    n_entries = n_kept * (scores.shape[0] if per_row else 1)
    return _write(scores, cut_key, cut.to(scores.dtype), above + room, room, n_entries, per_row=per_row)


def all_positive(scores: Float[Tensor, "batch d_sae"]) -> Kept:
    """All positive scores.

    Their number determines the size of the result, so the host waits once for the device.
    """
    scores = scores.contiguous()
    key_bits, _, key_type, _ = _key_layout(scores.dtype)
    nothing = scores.new_full((1,), -1, dtype=torch.int64)
    counts = scores.new_empty((scores.shape[0], N_DIGITS), dtype=torch.int32)
    _count(scores, nothing, counts, shift=key_bits - DIGIT_BITS, first=True, per_row=False, key_type=key_type)
    row_count = counts.sum(dim=1)
    n_entries = int(row_count.sum())
    room = torch.zeros_like(row_count)
    return _write(scores, nothing, scores.new_zeros(1), row_count, room, n_entries, per_row=False)


def _key_layout(dtype: torch.dtype) -> tuple[int, int, tl.dtype, torch.dtype]:
    """Number of bits of a key, number of high bits that can differ, and the type of the key in Triton and torch."""
    if dtype == torch.float64:
        return 64, 64, tl.int64, torch.int64
    # A bfloat16 is the upper half of a float32.
    return 32, 16 if dtype == torch.bfloat16 else 32, tl.int32, torch.int32


def _count(
    scores: Float[Tensor, "batch d_sae"],
    prefix: Int[Tensor, " groups"],
    counts: Int[Tensor, "batch digits"],
    *,
    shift: int,
    first: bool,
    per_row: bool,
    key_type: tl.dtype,
) -> None:
    with on_device_of(scores):
        _count_digits[(scores.shape[0],)](
            scores, prefix, counts, scores.shape[1],
            SHIFT=shift, FIRST=first, PER_ROW=per_row, BITS=DIGIT_BITS, DIGITS=N_DIGITS, KEY=key_type, BLOCK=COUNT_BLOCK,
        )  # fmt: skip


def _write(
    scores: Float[Tensor, "batch d_sae"],
    cut_key: Int[Tensor, " groups"],
    cut: Float[Tensor, " groups"],
    row_count: Int[Tensor, " batch"],
    room: Int[Tensor, " batch"],
    n_entries: int,
    *,
    per_row: bool,
) -> Kept:
    row_end = row_count.cumsum(0)
    row_begin = row_end - row_count
    values = scores.new_zeros(n_entries)
    rows = scores.new_zeros(n_entries, dtype=torch.int32)
    columns = scores.new_full((n_entries,), scores.shape[1], dtype=torch.int32)
    with on_device_of(scores):
        _write_entries[(scores.shape[0],)](
            scores, cut_key, row_begin, room, values, rows, columns, scores.shape[1],
            PER_ROW=per_row, KEY=_key_layout(scores.dtype)[2], BLOCK=WRITE_BLOCK,
        )  # fmt: skip
    return Kept(values, rows, columns, row_begin, row_end, cut)

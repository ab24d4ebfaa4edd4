"""The formulas of the cost model: FLOP of language models and crosscoders, and the bytes that they hold. This is their one place.

One multiply-add counts as two FLOP. Products are counted, and nothing else: norms, activations, softmax and the optimizer move bytes.
Sources: a forward pass of 2 FLOP per weight and token, and attention of 4 × width × context per token and layer (Kaplan et al. 2020,
arXiv 2001.08361, table 1; the context is that of eager attention, which computes masked scores, too); dense and sparse steps of a
crosscoder and its optimizer (docs/kernels.md). What is marked as ours was counted in the code of mechprobe.
"""

from mechprobe.models.log_probs import BLOCK_VALUES, CHUNK_VALUES
from mechprobe.planning.shapes import BYTES, ModelShape

Number = int | float

FLOAT = 4
"""Bytes of a float32."""
_REUSED = 1 << 25
"""Freed blocks below this size stay with the process (glibc's greatest ``M_MMAP_THRESHOLD``)."""


def forward_flop(shape: ModelShape, n_tokens: Number, context: Number, n_layers: Number | None = None) -> Number:
    """FLOP of blocks: ``n_tokens`` tokens, each with ``context`` keys, through ``n_layers`` blocks (None: all).

    Where only some blocks have attention, each counts the mean of all. The recurrence of the others is not counted.
    """
    layers = shape.n_layers if n_layers is None else n_layers
    attention = 4 * shape.n_heads * shape.head_dim * context * shape.n_attention / shape.n_layers
    return layers * n_tokens * (2 * shape.block_weights + attention)


def head_flop(shape: ModelShape, n_positions: Number) -> Number:
    """FLOP of the unembedding at ``n_positions`` positions."""
    return 2 * shape.d_model * shape.n_ids * n_positions


def backward_flop(forward: Number, *, weights: bool) -> Number:
    """FLOP of a backward pass: one forward pass for the gradient of activations, and one more for that of weights."""
    return forward * (2 if weights else 1)


def encode_flop(d_all: int, d_sae: int, n_rows: Number) -> Number:
    """FLOP of the encoder of a crosscoder: 2·D·F per row, for D = models × width and F latents."""
    return 2 * d_all * d_sae * n_rows


def dense_step_flop(d_all: int, d_sae: int, n_tokens: Number) -> Number:
    """FLOP of training without sparsity: encode, decode, and three products of the gradient, 10·D·F per token."""
    return 10 * d_all * d_sae * n_tokens


def sparse_step_flop(d_all: int, d_sae: int, k: Number, n_tokens: Number) -> Number:
    """FLOP of training with ``k`` active latents: the encoder stays dense, four products are sparse; 2·D·F + 8·D·k per token."""
    return (2 * d_all * d_sae + 8 * d_all * k) * n_tokens


def optimizer_bytes(n_weights: int) -> int:
    """Bytes that one step of Adam in float32 moves: it reads p, g, m, v and writes p, m, v; 28 per weight."""
    return 28 * n_weights


def crosscoder_weights(d_all: int, d_sae: int) -> int:
    """Weights of a crosscoder: encoder, decoder, and both biases."""
    return 2 * d_all * d_sae + d_sae + d_all


def training_bytes(d_all: int, d_sae: int, batch: int, *, dense: bool) -> int:
    """Bytes held by a step: weights, gradients and two moments in float32, and activations.

    A batch holds x, error and reconstruction (3·B·D). Its latents are four arrays B·F where the step is dense (scores, activations and
    their gradients) and two where it is sparse: scores, and a copy that selection works on (ours).
    """
    return FLOAT * (4 * crosscoder_weights(d_all, d_sae) + 3 * batch * d_all + (4 if dense else 2) * batch * d_sae)


def kept_bytes(d_all: int, d_sae: int) -> int:
    """Bytes of freed gradients that a CPU's allocator keeps beside new ones: encoder and decoder, where each is small (ours)."""
    matrix = FLOAT * d_all * d_sae
    return 2 * matrix if matrix < _REUSED else 0


def evaluation_bytes(d_all: int, d_sae: int, rows: int) -> int:
    """Bytes held while a trained dictionary is measured, its optimizer still in memory.

    A batch holds its rows five times (read, centered, reconstruction, error and its squares), and its latents three times: scores, a
    copy that selection works on, and activations (ours).
    """
    return FLOAT * (3 * crosscoder_weights(d_all, d_sae) + rows * (5 * d_all + 3 * d_sae))


def kv_bytes(shape: ModelShape, dtype: str, n_rows: int, length: int) -> int:
    """Bytes of keys and values of ``n_rows`` sequences. The states of blocks without attention are not counted."""
    return 2 * shape.n_attention * n_rows * length * shape.n_kv_heads * shape.head_dim * BYTES[dtype]


def activation_bytes(shape: ModelShape, dtype: str, n_rows: int, length: int) -> int:
    """Largest sum of tensors inside one block at a time, without gradients (ours, counted in the eager attention of transformers).

    Attention holds scores, their float32 softmax and its cast, beside q, k, v and the residual. The MLP holds gate, up, and their
    product, beside the residual. The larger of both counts.
    """
    size, tokens = BYTES[dtype], n_rows * length
    residual = 2 * tokens * shape.d_model * size
    width = (shape.n_heads + 4 * shape.n_heads) * shape.head_dim  # q, and keys and values repeated for every head twice
    attention = shape.n_heads * tokens * length * (size + FLOAT + size) + tokens * width * size
    mlp = 3 * tokens * shape.d_ff * size
    return residual + max(attention, mlp)


def graph_bytes(shape: ModelShape, dtype: str, n_tokens: int, length: int, n_layers: Number) -> int:
    """Bytes that a backward pass keeps of ``n_layers`` blocks (ours): about 8 residuals, 4 inner activations and two score matrices."""
    size = BYTES[dtype]
    per_token = 8 * shape.d_model + 4 * shape.d_ff + 2 * shape.n_heads * length
    return round(n_layers * n_tokens * per_token * size)


def loss_bytes(shape: ModelShape, dtype: str, n_positions: int, device: str) -> int:
    """Bytes of the chunked loss (`mechprobe.models.log_probs`): logits of a chunk twice, and blocks of float64 log-probabilities."""
    chunk = min(max(CHUNK_VALUES, shape.n_ids), n_positions * shape.n_ids)
    block = max(BLOCK_VALUES.get(device, 1 << 22), shape.n_ids)
    return 2 * chunk * BYTES[dtype] + 4 * 8 * block


def generation_bytes(shape: ModelShape, dtype: str, n_rows: int, prompt: int, new: int) -> int:
    """Bytes of a generating batch beside the weights: the larger of the prompt's pass and the last step.

    The cache of keys and values grows by concatenation, so that one layer of it exists twice. Logits of the last position exist in the
    dtype of the model and twice in float32 (the copy of generate, and its checked and masked one).
    """
    logits = n_rows * shape.n_ids * (BYTES[dtype] + 2 * FLOAT)
    whole = kv_bytes(shape, dtype, n_rows, prompt + new)
    step = whole + whole // shape.n_layers + logits + n_rows * (prompt + new) * shape.n_heads * 3 * FLOAT
    first = kv_bytes(shape, dtype, n_rows, prompt) + activation_bytes(shape, dtype, n_rows, prompt) + logits
    return max(step, first)

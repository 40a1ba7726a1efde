"""The gated delta rule for training: the rule itself, a chunked form, and the same as Triton kernels.

    TRITON_INTERPRET=1 python delta.py     # compares all three and their gradients, without a GPU

Shapes: q, k `[B, L, Hk, Dk]`, v `[B, L, Hv, Dv]`, log_decay and beta `[B, L, Hv]`; value head h uses
key head h // (Hv / Hk). q and k come normalised, q also scaled. The state starts at zero. Result:
`[B, L, Hv, Dv]`. With G the sum of log_decay within a chunk, S the state before it:

    A_ij = beta_i e^(G_i - G_j) k_i.k_j  (j < i)        T = (I + A)^-1
    V' = T beta (v - e^G k S)                           P_ij = e^(G_i - G_j) q_i.k_j  (j <= i)
    o  = e^G q S + P V'                                 S <- e^(G_last) S + (e^(G_last - G) k)^T V'
"""

import torch
import torch.nn.functional as F

try:
    import triton
    import triton.language as tl
except ImportError:  # plain processors train with `chunked`
    triton = None

CHUNK = 32  # of the kernels: two blocks of 16 make the inverse


def sequential(q, k, v, log_decay, beta):
    """One token after another: the definition, for tests."""
    group = v.shape[2] // k.shape[2]
    q, k = q.repeat_interleave(group, 2), k.repeat_interleave(group, 2)
    state = v.new_zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3])
    out = []
    for t in range(v.shape[1]):
        state = state * log_decay[:, t].exp()[..., None, None]
        seen = torch.einsum("bhd,bhde->bhe", k[:, t], state)
        delta = (v[:, t] - seen) * beta[:, t, :, None]
        state = state + k[:, t].unsqueeze(-1) * delta.unsqueeze(-2)
        out.append(torch.einsum("bhd,bhde->bhe", q[:, t], state))
    return torch.stack(out, 1)


def chunked(q, k, v, log_decay, beta, chunk=64):
    """Whole chunks in batched products; only the states go from chunk to chunk."""
    batch, length, heads, dv = v.shape
    group, pad = heads // k.shape[2], -length % chunk
    q, k = q.repeat_interleave(group, 2), k.repeat_interleave(group, 2)

    def split(x):  # [B, L, H, D] -> [B, H, N, C, D]
        x = F.pad(x, (0, 0, 0, 0, 0, pad))
        return x.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4)

    q, k, v = split(q), split(k), split(v)
    total = split(log_decay.unsqueeze(-1)).cumsum(3)  # G: [B, H, N, C, 1]
    beta = split(beta.unsqueeze(-1))
    lower = torch.ones(chunk, chunk, dtype=torch.bool, device=v.device).tril()
    # masked before exp: above the diagonal it overflows
    decay = (total - total.mT).masked_fill(~lower, float("-inf")).exp()
    a = (beta * (k @ k.mT) * decay).tril(-1)
    eye = torch.eye(chunk, dtype=v.dtype, device=v.device)
    values = torch.cat((beta * v, beta * total.exp() * k), -1)
    values = torch.linalg.solve_triangular(a + eye, values, upper=False, unitriangular=True)
    values, keys = values.split((dv, k.shape[-1]), -1)
    p = (q @ k.mT) * decay
    q, k = q * total.exp(), k * (total[..., -1:, :] - total).exp()
    last = total[..., -1:, :].exp()
    state, out = v.new_zeros(batch, heads, k.shape[-1], dv), []
    for n in range(v.shape[2]):
        new = values[:, :, n] - keys[:, :, n] @ state
        out.append(q[:, :, n] @ state + p[:, :, n] @ new)
        state = state * last[:, :, n] + k[:, :, n].mT @ new
    out = torch.stack(out, 2).flatten(2, 3)[:, :, :length]
    return out.transpose(1, 2)


if triton is not None:

    @triton.jit
    def _dot(a, b):
        return tl.dot(a, b, input_precision="tf32")

    @triton.jit
    def _exact(a, b):
        return tl.dot(a, b, input_precision="tf32x3")

    @triton.jit
    def _inverse(a, rows, cols):
        """(I + a)^-1 for strictly lower `a` of 32 rows: squarings within blocks of 16, then once
        across. Whole squarings would do as well, but their powers grow beyond f32."""
        near = (rows // 16)[:, None] == (cols // 16)[None, :]
        d = tl.where(near, a, 0.0)
        x = tl.where(rows[:, None] == cols[None, :], 1.0, 0.0) - d
        power = d
        for _ in range(3):
            power = _exact(power, power)
            x += _exact(x, power)
        return x - _exact(_exact(x, a - d), x)

    @triton.jit
    def _chunk(q_ptr, k_ptr, v_ptr, g_ptr, b_ptr, row, head, start, length, heads, group,
               C: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr):
        """Loads one chunk; past the end: keys, values and beta 0, decay 1."""
        t = start + tl.arange(0, C)
        here = t < length
        token = row * length + t
        keys = (token * (heads // group) + head // group)[:, None] * DK + tl.arange(0, DK)[None, :]
        vals = (token * heads + head)[:, None] * DV + tl.arange(0, DV)[None, :]
        q = tl.load(q_ptr + keys, here[:, None], 0.0).to(tl.float32)
        k = tl.load(k_ptr + keys, here[:, None], 0.0).to(tl.float32)
        v = tl.load(v_ptr + vals, here[:, None], 0.0).to(tl.float32)
        g = tl.load(g_ptr + token * heads + head, here, 0.0)
        beta = tl.load(b_ptr + token * heads + head, here, 0.0)
        return q, k, v, g, beta, here

    @triton.jit
    def _inside(q, k, g, beta, C: tl.constexpr):
        """What needs no state: G, its last value, the decays, A and P."""
        i = tl.arange(0, C)
        total = tl.cumsum(g, 0)
        last = tl.sum(g, 0)
        gap = total[:, None] - total[None, :]
        decay = tl.exp(tl.where(i[:, None] >= i[None, :], gap, float("-inf")))
        a = _dot(k, tl.trans(k)) * decay * beta[:, None]
        a = tl.where(i[:, None] > i[None, :], a, 0.0)
        return total, last, decay, a, _dot(q, tl.trans(k)) * decay

    @triton.jit
    def _forward(q_ptr, k_ptr, v_ptr, g_ptr, b_ptr, o_ptr, s_ptr, t_ptr, length, n_chunks,
                 heads, group, C: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr):
        row = (tl.program_id(0) // heads).to(tl.int64)
        head = tl.program_id(0) % heads
        i = tl.arange(0, C)
        inner = tl.arange(0, DK)[:, None] * DV + tl.arange(0, DV)[None, :]
        square = i[:, None] * C + i[None, :]
        state = tl.zeros((DK, DV), tl.float32)
        for n in range(n_chunks):
            q, k, v, g, beta, here = _chunk(q_ptr, k_ptr, v_ptr, g_ptr, b_ptr, row, head, n * C,
                                            length, heads, group, C, DK, DV)
            total, last, decay, a, p = _inside(q, k, g, beta, C)
            inverse = _inverse(a, i, i)
            chunk = (row * heads + head) * n_chunks + n
            tl.store(s_ptr + chunk * DK * DV + inner, state)
            tl.store(t_ptr + chunk * C * C + square, inverse)
            grown = tl.exp(total)[:, None]
            new = _dot(inverse, beta[:, None] * (v - grown * _dot(k, state)))
            out = grown * _dot(q, state) + _dot(p, new)
            token = row * length + n * C + i
            place = (token * heads + head)[:, None] * DV + tl.arange(0, DV)[None, :]
            tl.store(o_ptr + place, out.to(o_ptr.dtype.element_ty), here[:, None])
            kept = tl.exp(last - total)[:, None] * k
            state = tl.exp(last) * state + _dot(tl.trans(kept), new)

    @triton.jit
    def _backward(q_ptr, k_ptr, v_ptr, g_ptr, b_ptr, s_ptr, t_ptr, do_ptr, dq_ptr, dk_ptr, dv_ptr,
                  dg_ptr, db_ptr, length, n_chunks, heads, group, C: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr):
        """Chunks from the last to the first; dq and dk are per value head and summed outside."""
        row = (tl.program_id(0) // heads).to(tl.int64)
        head = tl.program_id(0) % heads
        inner = tl.arange(0, DK)[:, None] * DV + tl.arange(0, DV)[None, :]
        i = tl.arange(0, C)
        ds = tl.zeros((DK, DV), tl.float32)
        for back in range(n_chunks):
            n = n_chunks - 1 - back
            q, k, v, g, beta, here = _chunk(q_ptr, k_ptr, v_ptr, g_ptr, b_ptr, row, head, n * C,
                                            length, heads, group, C, DK, DV)
            total, last, decay, a, p = _inside(q, k, g, beta, C)
            chunk = (row * heads + head) * n_chunks + n
            state = tl.load(s_ptr + chunk * DK * DV + inner)
            inverse = tl.load(t_ptr + chunk * C * C + i[:, None] * C + i[None, :])
            token = (row * length + n * C + i) * heads + head
            vals = token[:, None] * DV + tl.arange(0, DV)[None, :]
            do = tl.load(do_ptr + vals, here[:, None], 0.0).to(tl.float32)
            grown = tl.exp(total)
            left = tl.exp(last - total)
            rest = v - grown[:, None] * _dot(k, state)
            new = _dot(inverse, beta[:, None] * rest)
            kept = left[:, None] * k

            dnew = _dot(tl.trans(p), do) + _dot(kept, ds)
            dr = _dot(tl.trans(inverse), dnew)
            dp = _dot(do, tl.trans(new))
            da = tl.where(i[:, None] > i[None, :], -_dot(dr, tl.trans(new)), 0.0)
            do_state = grown[:, None] * _dot(do, tl.trans(state))
            dkept = _dot(new, tl.trans(ds))
            dseen = -(beta * grown)[:, None] * dr  # gradient of k S
            dpq, dak = dp * decay, da * decay * beta[:, None]
            dq = do_state + _dot(dpq, k)
            dk = _dot(tl.trans(dpq), q) + _dot(dak, k) + _dot(tl.trans(dak), k)
            dk += _dot(dseen, tl.trans(state)) + left[:, None] * dkept
            db = tl.sum(dr * rest, 1) + tl.sum(da * decay * _dot(k, tl.trans(k)), 1)

            pairs = dp * p + da * a
            dkeep = tl.sum(kept * dkept, 1)
            dtotal = tl.sum(pairs, 1) - tl.sum(pairs, 0) + tl.sum(q * do_state, 1) - dkeep
            dtotal += tl.sum(dr * beta[:, None] * (rest - v), 1)
            dlast = tl.sum(dkeep, 0) + tl.exp(last) * tl.sum(tl.sum(state * ds, 1), 0)
            dg = tl.cumsum(dtotal, 0, reverse=True) + dlast
            ds = tl.exp(last) * ds + _dot(tl.trans(k), dseen)
            ds += _dot(tl.trans(grown[:, None] * q), do)

            keys = token[:, None] * DK + tl.arange(0, DK)[None, :]
            tl.store(dq_ptr + keys, dq.to(dq_ptr.dtype.element_ty), here[:, None])
            tl.store(dk_ptr + keys, dk.to(dk_ptr.dtype.element_ty), here[:, None])
            dv = beta[:, None] * dr
            tl.store(dv_ptr + vals, dv.to(dv_ptr.dtype.element_ty), here[:, None])
            tl.store(dg_ptr + token, dg, here)
            tl.store(db_ptr + token, db, here)


WARPS = 2


@torch.library.custom_op("demo::delta_forward", mutates_args=())
def delta_forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_decay: torch.Tensor,
                  beta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The result; for the way back, of each chunk the state before it, `[B, Hv, chunks, Dk, Dv]`,
    and T, `[B, Hv, chunks, CHUNK, CHUNK]`, both f32."""
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    log_decay, beta = log_decay.contiguous(), beta.contiguous()
    batch, length, heads, dv = v.shape
    n_chunks = (length + CHUNK - 1) // CHUNK
    out = v.new_empty(v.shape)
    states = torch.empty(batch, heads, n_chunks, k.shape[3], dv, device=v.device)
    inverses = torch.empty(batch, heads, n_chunks, CHUNK, CHUNK, device=v.device)
    _forward[(batch * heads,)](q, k, v, log_decay, beta, out, states, inverses, length, n_chunks,
                               heads, heads // k.shape[2], CHUNK, k.shape[3], dv, num_warps=WARPS)
    return out, states, inverses


@delta_forward.register_fake
def _(q, k, v, log_decay, beta):
    batch, length, heads, dv = v.shape
    n_chunks = (length + CHUNK - 1) // CHUNK
    states = v.new_empty(batch, heads, n_chunks, k.shape[3], dv, dtype=torch.float32)
    inverses = v.new_empty(batch, heads, n_chunks, CHUNK, CHUNK, dtype=torch.float32)
    return v.new_empty(v.shape), states, inverses


@torch.library.custom_op("demo::delta_backward", mutates_args=())
def delta_backward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_decay: torch.Tensor,
                   beta: torch.Tensor, states: torch.Tensor, inverses: torch.Tensor,
                   grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor,
                                                torch.Tensor, torch.Tensor]:
    """Gradients of q and k per value head, of v, log_decay and beta."""
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    log_decay, beta, grad = log_decay.contiguous(), beta.contiguous(), grad.contiguous()
    batch, length, heads, dv = v.shape
    dq = torch.empty(batch, length, heads, k.shape[3], dtype=q.dtype, device=q.device)
    dk, dvalue = torch.empty_like(dq), torch.empty_like(v)
    dg, db = torch.empty_like(log_decay), torch.empty_like(beta)
    _backward[(batch * heads,)](q, k, v, log_decay, beta, states, inverses, grad, dq, dk, dvalue,
                                dg, db, length, states.shape[2], heads, heads // k.shape[2], CHUNK,
                                k.shape[3], dv, num_warps=WARPS)
    return dq, dk, dvalue, dg, db


@delta_backward.register_fake
def _(q, k, v, log_decay, beta, states, inverses, grad):
    batch, length, heads, _ = v.shape
    dq = q.new_empty(batch, length, heads, q.shape[3])
    return (dq, torch.empty_like(dq), v.new_empty(v.shape), log_decay.new_empty(log_decay.shape),
            beta.new_empty(beta.shape))


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output[1:])


def _gradients(ctx, grad, *_):
    q, k, v, log_decay, beta, states, inverses = ctx.saved_tensors
    dq, dk, *rest = delta_backward(q, k, v, log_decay, beta, states, inverses, grad)
    dq, dk = (x.unflatten(2, (k.shape[2], -1)).float().sum(3).to(q.dtype) for x in (dq, dk))
    return (dq, dk, *rest)


delta_forward.register_autograd(_gradients, setup_context=_save)


def gated_delta(q, k, v, log_decay, beta):
    """The kernels on a GPU, the chunked form elsewhere; log_decay and beta are f32 on a GPU."""
    if v.is_cuda and triton is not None:
        return delta_forward(q, k, v, log_decay, beta)[0]
    return chunked(q, k, v, log_decay, beta)


def sample(shape, device, dtype=torch.float64, seed=0):
    """Inputs as a model makes them; some keys repeat, so that A is far from small."""
    batch, length, hk, hv, dk, dv = shape
    g = torch.Generator().manual_seed(seed)

    def rand(*size):
        return torch.randn(*size, generator=g, dtype=torch.float64)

    q, k = F.normalize(rand(batch, length, hk, dk), dim=-1), rand(batch, length, hk, dk)
    k = F.normalize(torch.where(rand(batch, length, 1, 1) > 0, k, k[:, :1]), dim=-1)
    decay, beta = -F.softplus(rand(batch, length, hv) * 2 - 3), torch.sigmoid(rand(batch, length, hv) * 2)
    values = (q * dk**-0.5, k, rand(batch, length, hv, dv), decay, beta)
    return [x.to(device, dtype).requires_grad_() for x in values]


def compare(form, shape, device, dtype):
    """Largest relative error (2-norm) of result and gradients against `sequential` in f64."""
    worst, results = 0.0, []
    for f, kind in ((sequential, torch.float64), (form, dtype)):
        inputs = sample(shape, device, kind)
        out = f(*inputs)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        (out.double() * weights.to(device)).sum().backward()
        results.append([out.detach().double()] + [x.grad.double() for x in inputs])
    for want, got in zip(*results):
        worst = max(worst, ((want - got).norm() / want.norm()).item())
    return worst


def check(device="cpu"):
    """Raises if a form differs from the rule."""
    kernels = lambda *x: delta_forward(*x)[0]  # noqa: E731
    cases = [("chunked", lambda *x: chunked(*x, chunk=16), torch.float64, 1e-10), ("chunked", chunked, torch.float64, 1e-10)]
    if triton is not None:
        # products in TF32 on a GPU: 10 bits
        cases.append(("kernels", kernels, torch.float32, 1e-4 if device == "cpu" else 3e-2))
    for shape in ((2, 50, 2, 4, 16, 32), (1, 131, 1, 3, 32, 16), (3, 31, 4, 8, 32, 32)):
        for name, form, dtype, bound in cases:
            error = compare(form, shape, device, dtype)
            print(f"{name} {shape}: relative error {error:.1e}", flush=True)
            if not error < bound:
                raise AssertionError(f"{name} is wrong by {error}")


if __name__ == "__main__":
    check("cuda" if torch.cuda.is_available() else "cpu")

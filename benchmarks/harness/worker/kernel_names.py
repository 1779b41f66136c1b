"""Names of kernels and operators as people read them, and what kind of work each is.

A templated CUDA kernel's name runs to a kilobyte; what tells it from its neighbours is its own name and, where that is
a loop over elements, the functor inside. The full name stays in the record.
"""

from __future__ import annotations

import re

LONGEST = 52
IDLE, OUTSIDE = "idle", "outside torch's operators"
FUSED, OWN_CODE = "fused kernel", "own code"  # a kernel written for this; an autograd function, Python or C++

# The first pattern found in the lower-case name decides. Operators and kernels share the list.
_KINDS: tuple[tuple[str, str], ...] = (
    ("attention library", r"fmha|flash|efficient_attention|mem_eff|scaled_dot_product|flex_attention|attention_kernel"),
    ("compiled code", r"^triton_(poi|red|per|tem|for|mm|bmm)_|cpp_fused|compiledf|torch-compiled|inductor|##.*compile"),
    (
        "matrix products",
        r"gemm|gemv|cutlass|cublas|nvjet|xmma|splitk|mkldnn|onednn|bmm|[dr:]mm(back|$)|einsum|matmul|linear",
    ),
    ("normalisation", r"layer_?norm|gammabeta|rms_?norm"),
    ("softmax", r"softmax"),
    ("gather and scatter", r"gather|scatter|index|embedding|sort|nonzero|unique|bucketize|masked_select"),
    (
        "copies and fills",
        r"copy|memcpy|memset|fill|catarray|aten::(cat|clone|zero|empty|contiguous|to|pad|constant_pad)",
    ),
    ("reductions", r"reduce|aten::(sum|mean|norm|amax|amin|max|min|any|all|linalg_vector_norm)|cumsum|scan"),
    (
        "elementwise",
        r"elementwise|_foreach|aten::(add|sub|mul|div|exp|where|relu|clamp|neg|rsqrt|pow|sigmoid|threshold|logical"
        r"|bitwise|eq|lt|gt|le|ge|ne|sqrt|abs|maximum|minimum)",
    ),
)
# A Triton kernel bears its function's bare name, an autograd function of ours its class's; torch's own have a number.
_PLAIN = re.compile(r"^(?!.*Backward\d+$)_?[A-Za-z]\w*$")
_LIBRARIES = ("attention library", "compiled code", "matrix products")  # these have bare names too
_OWN_OPERATOR = re.compile(r"^(?!aten::|prim::|autograd::|torch::|c10)[a-z_]\w*::")
_LOOPS = re.compile(r"elementwise_kernel|reduce_kernel|index_kernel|scan_kernel|multi_tensor_apply", re.IGNORECASE)
_FUNCTORS = re.compile(r"CUDAFunctor_?(\w+)|(\w+?)Functor|(\w+?)Ops\b|(\w+?)_kernel_(?:cuda|impl)|(\w+?)NanFunctor")
# One word for each kind in a sentence.
SAID = {
    FUSED: "the fused kernel",
    OWN_CODE: "the backend's own code",
    IDLE: "idle between launches",
    OUTSIDE: "outside torch's operators (Python, or code that torch does not see)",
}


def kind(name: str, *, operator: bool = False) -> str:
    """What sort of work a kernel does, by its full name; or an ``operator``, apart from what it calls."""
    own = bool(_PLAIN.match(name) or _OWN_OPERATOR.match(name))
    lower = name.lower()
    for found, pattern in _KINDS:
        if own and found not in _LIBRARIES:  # a kernel of ours is named after what it fuses
            break
        if re.search(pattern, lower):
            return found
    if not own:
        return "other"
    return OWN_CODE if operator else FUSED


def shorten(name: str) -> str:
    """The name without templates, namespaces and arguments; a loop over elements is told by its functor."""
    text = re.sub(r"\((?:anonymous namespace|anonymous class)\)", "", name.strip())
    text = re.sub(r"^(?:void|static|inline)\s+", "", text)
    if text.startswith(("aten::", "autograd::", "torch::")):
        text = text.split("::", 1)[1].replace("engine::evaluate_function: ", "")
    elif "<" in text or "(" in text:
        outer = re.split(r"[<(]", text, maxsplit=1)
        own = outer[0].split("::")[-1].strip()
        inside = outer[1] if len(outer) > 1 else ""
        if own in ("Kernel", "Kernel2", "device_kernel", "kernel"):  # cutlass: the kernel's name is its argument
            own = re.split(r"[<>(),\s]", inside, maxsplit=1)[0].split("::")[-1] or own
        elif _LOOPS.search(own) and (functor := _functor(inside)):
            own = f"{own.removesuffix('_kernel')}: {functor}"
        text = own
    return text if len(text) <= LONGEST else text[: LONGEST - 17] + "…" + text[-16:]


def _functor(inside: str) -> str | None:
    for found in _FUNCTORS.finditer(inside):
        word = next(group for group in found.groups() if group)
        if word.lower() not in ("binary", "unary", "aunary", "bunary", "gpu"):
            return word
    return None

"""The machinery of ``triton_fused``: kernels, tile sizes, launches, tuning and offline inspection.

May import pallatom, the declarations at the top of ``variants`` and ``variants.band``; imports no backend. Only the
modules of kernels and what compiles or times them import triton, which is optional.
"""

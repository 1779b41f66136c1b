"""The machinery of ``cpu_fused``: its kernels in C++, and the library that is compiled from them at first use.

May import pallatom, the declarations at the top of ``variants`` and ``variants.band``; imports no backend.
"""

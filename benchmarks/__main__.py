"""``python -m benchmarks``: check, measure and compare the attention backends."""

from .commands import main

if __name__ == "__main__":
    main()

"""The tests, in folders that mirror the code; what they share lies beside this file."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

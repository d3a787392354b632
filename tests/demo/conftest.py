"""The demonstration is a folder of scripts that import each other by their names."""

import sys
from pathlib import Path

DEMO = Path(__file__).resolve().parents[2] / "trainer_adapters" / "demo"
sys.path.insert(0, str(DEMO))

"""Scripts of tools/model_zoo are modules of one another."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools' / 'model_zoo'))

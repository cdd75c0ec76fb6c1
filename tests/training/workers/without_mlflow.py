"""`training.run` where MLflow is not installed."""

from __future__ import annotations

import sys

from training.run import main

if __name__ == "__main__":
    for name in [name for name in sys.modules if name.partition(".")[0] == "mlflow"]:
        del sys.modules[name]
    sys.modules["mlflow"] = None  # type: ignore[assignment]
    sys.exit(main())

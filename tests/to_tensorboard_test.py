"""scripts/to_tensorboard, read back by TensorBoard's own reader. Exit code 77: not installed."""

import json
import pathlib
import subprocess
import sys
import tempfile

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
except ImportError:
    print("tensorboard is not installed: skipped")
    sys.exit(77)

LINES = [
    {"arm": "aspa", "seed": 3, "step": 10, "loss": 2.5, "seconds": 1.5},
    {"arm": "aspa", "seed": 3, "step": 10,
     "routing": [{"layer": 1, "part": "attention", "k": 2, "query": {"maxvio": 0.25, "load": [1]}}]},
    {"arm": "aspa", "seed": 3, "step": 20, "val_loss": 2.25, "churn": None},
    {"arm": "dense", "seed": 3, "step": 10, "loss": 3.0},
]


def main():
    script = pathlib.Path(__file__).parent.parent / "scripts" / "to_tensorboard"
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder) / "duel"
        run.mkdir()
        text = "".join(json.dumps(line) + "\n" for line in LINES)
        (run / "metrics.jsonl").write_text(text + '{"arm": "aspa", "st')
        logs = pathlib.Path(folder) / "logs"
        subprocess.run([sys.executable, script, logs, run], check=True)
        aspa = EventAccumulator(str(logs / "duel" / "aspa-seed3")).Reload()
        tags = set(aspa.Tags()["scalars"])
        assert tags == {"loss", "seconds", "val_loss", "routing/layer 1 attention/k",
                        "routing/layer 1 attention/query/maxvio"}, tags
        (point,) = aspa.Scalars("val_loss")
        assert (point.step, point.value, point.wall_time) == (20, 2.25, 1.5), point
        dense = EventAccumulator(str(logs / "duel" / "dense-seed3")).Reload()
        assert dense.Tags()["scalars"] == ["loss"]
        bad = subprocess.run([sys.executable, script, logs, folder], capture_output=True, text=True)
        assert bad.returncode == 1 and "no metrics.jsonl" in bad.stderr, bad


main()

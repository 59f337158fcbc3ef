"""What a run writes down while it trains: JSON lines and TensorBoard scalars."""

import json
import math
from pathlib import Path
from types import TracebackType

from tensorboardX import SummaryWriter


class Log:
    """Scalars by step, to `log.jsonl` and TensorBoard event files of one directory; appended to on a restart."""

    def __init__(self, directory: str | Path):
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._lines = (directory / "log.jsonl").open("a", encoding="utf-8")
        self._board = SummaryWriter(str(directory / "tensorboard"))

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        self._board.close()

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes one line {"step": ..., name: value, ...}; a value that is not finite becomes null, as JSON has none."""
        values = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)

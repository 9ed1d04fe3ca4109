"""The tasks: one file each. Tasks return numpy batches and import neither torch nor zoo.

>>> task = get("mqar")(seq_len=64)
>>> batch = next(task.train_batches(batch_size=8, seq_len=64, seed=0))
>>> batch.inputs.shape
(8, 64)
"""

import importlib
import pkgutil

from tasks.base import (
    IGNORE,
    Batch,
    EvalSplit,
    Kind,
    LengthSchedule,
    LrSchedule,
    Task,
    TaskDefaults,
    available,
    get,
    options,
    register,
)
from tasks.suites import SUITES, Suite

__all__ = [
    "IGNORE",
    "SUITES",
    "Batch",
    "EvalSplit",
    "Kind",
    "LengthSchedule",
    "LrSchedule",
    "Suite",
    "Task",
    "TaskDefaults",
    "available",
    "get",
    "options",
    "register",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

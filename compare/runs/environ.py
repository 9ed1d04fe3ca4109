"""The environment variables that a worker inherits: those needed to start, to find files and to reach the network.

Launchers, job queues and notebooks set variables (WORLD_SIZE, PMI_RANK, ACCELERATE_…) that libraries silently obey.
Everything that changes a result is in the spec; all other variables are dropped.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

NEEDED = """
PATH HOME USER LOGNAME LANG LANGUAGE TZ TMPDIR TEMP TMP LOCALE_ARCHIVE
LD_LIBRARY_PATH LD_PRELOAD DYLD_LIBRARY_PATH DYLD_FALLBACK_LIBRARY_PATH NIX_LD NIX_LD_LIBRARY_PATH
PYTHONPATH PYTHONHOME PYTHONUSERBASE PYTHONNOUSERSITE PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX PYTHONUTF8
VIRTUAL_ENV CONDA_PREFIX
CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER CUDA_HOME CUDA_PATH CUDA_CACHE_PATH CUDA_MPS_PIPE_DIRECTORY
HIP_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES HSA_OVERRIDE_GFX_VERSION
CC CXX CPATH LIBRARY_PATH INCLUDE LIB LIBPATH TORCHINDUCTOR_CACHE_DIR TRITON_CACHE_DIR TRITON_LIBCUDA_PATH
HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE
SYSTEMROOT SYSTEMDRIVE WINDIR COMSPEC PATHEXT APPDATA LOCALAPPDATA PROGRAMDATA PROGRAMFILES USERPROFILE USERNAME
HOMEDRIVE HOMEPATH NUMBER_OF_PROCESSORS PROCESSOR_ARCHITECTURE
"""
KEPT = frozenset(NEEDED.split())
FAMILIES = ("ATTENTION_ZOO_", "HF_", "LC_", "XDG_", "WANDB_")
"""Prefixes of further names to keep: caches, tokens, languages, and the folders of trackers."""


def one_gpu(local_rank: int, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variable that shows a process of a run its own GPU only, so that it is the first one for all code."""
    shown = [name for name in inherited.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return {"CUDA_VISIBLE_DEVICES": shown[local_rank % len(shown)] if shown else str(local_rank)}


def worker_environment(threads: int, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The complete environment of the process that executes a run with so many threads."""
    kept = {
        name: value
        for name, value in inherited.items()
        if name.upper() in KEPT or name.upper().startswith(FAMILIES)  # proxies may be in lower case
    }
    return kept | {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONIOENCODING": "utf-8",  # a plug-in may print any character
        "PYTHONSAFEPATH": "1",  # its children import nothing from the current folder first
    }

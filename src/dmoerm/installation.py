"""What this machine offers and lacks: versions, devices, memory, the embedded weights. Reads, changes nothing, prints nothing secret.

Works where torch is missing or broken: that is when it is needed. The floors of versions are those of pyproject.toml, read from the
installed package's own metadata; those of torch and transformers are security floors.
"""

import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["Finding", "Installation", "inspect_installation"]

SECURITY = {
    "torch": "a file can make it run code or corrupt memory, even with weights_only (CVE-2025-32434, CVE-2026-24747)",
    "h11": "a request can be smuggled past a proxy (CVE-2025-43859)",
    "ray": "a web page open in a browser can run code on the cluster (CVE-2025-62593)",
    "starlette": "one request's headers can keep the server busy (CVE-2025-62727)",
    "transformers": "a model's config can make it run code (CVE-2026-4372, CVE-2026-5241)",
}
"""Why an older version than the floor is a matter of security."""

OTHERS = ("tokenizers", "huggingface-hub")
"""Not asked for by us, but by what we ask for, and worth knowing."""

CPU_FLAGS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16", "asimd": "NEON", "bf16": "BF16"}
"""Flags of /proc/cpuinfo that decide how fast a CPU scores and trains."""

Level = Literal["ok", "note", "warning", "fault"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        topic: group: versions, extras, devices, machine or weights.
        name: what was looked at.
        value: what was found.
        level: a fault keeps dmoerm from working, a warning should be seen to, a note is something that is not there.
        advice: what to do; "" where nothing is.
    """

    topic: str
    name: str
    value: str
    level: Level = "ok"
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Installation:
    """All findings, in the order of the report."""

    findings: tuple[Finding, ...]

    def at(self, level: Level) -> list[Finding]:
        """The findings of one level."""
        return [finding for finding in self.findings if finding.level == level]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: topic to name to what was found."""
        topics: dict[str, Any] = {}
        for f in self.findings:
            entry = {"value": f.value, "level": f.level, **({"advice": f.advice} if f.advice else {})}
            topics.setdefault(f.topic, {})[f.name] = entry
        return {"ok": not self.at("fault"), **topics}

    def as_text(self) -> str:
        """Grouped lines, advice below its line."""
        lines: list[str] = []
        width = max(len(f.name) for f in self.findings) + 2
        for topic in dict.fromkeys(f.topic for f in self.findings):
            lines += ["", topic] if lines else [topic]
            for f in (f for f in self.findings if f.topic == topic):
                mark = {"ok": "", "note": "", "warning": "WARNING ", "fault": "FAULT "}[f.level]
                lines.append(f"  {f.name:<{width}}{mark}{f.value}")
                if f.advice:
                    lines.append(f"  {'':<{width}}-> {f.advice}")
        return "\n".join(lines)


def inspect_installation() -> Installation:
    """Look at everything."""
    return Installation((*_versions(), *_extras(), *_devices(), *_machine(), *_weights()))


# --- versions -----------------------------------------------------------------------------------------------------------------------


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "python", f"{platform.python_version()} ({platform.system()} {platform.machine()})")
    yield Finding("versions", "dmoerm", importlib.metadata.version("dmoerm"))
    needed = {name: floor for name, floor, extra in _requirements() if extra is None}
    for name, floor in {**needed, **dict.fromkeys(OTHERS, "")}.items():
        found = _version(name)
        if found is None:
            yield Finding("versions", name, "not installed", "fault", f"pip install '{name}>={floor}'" if floor else f"pip install {name}")
        elif floor and _numbers(found) < _numbers(floor):
            reason = f": {SECURITY[name]}" if name in SECURITY else ""
            yield Finding("versions", name, f"{found}, below {floor}{reason}", "warning", f"pip install -U '{name}>={floor}'")
        else:
            yield Finding("versions", name, found)


def _extras() -> Iterator[Finding]:
    extras: dict[str, list[str]] = {}
    floors: dict[str, str] = {}
    for name, floor, extra in _requirements():
        if extra is not None and extra != "dev":
            extras.setdefault(extra, []).append(name)
            floors[name] = floor
    for extra, names in sorted(extras.items()):
        found = {name: _version(name) for name in names}
        missing = [name for name, installed in found.items() if installed is None]
        if missing:
            yield Finding("extras", extra, f"{', '.join(missing)} not installed", "note", f"pip install 'dmoerm[{extra}]'")
        elif old := [name for name, installed in found.items() if _numbers(installed or "") < _numbers(floors[name])]:
            reasons = (f"{name} {found[name]}, below {floors[name]}{': ' + SECURITY[name] if name in SECURITY else ''}" for name in old)
            yield Finding("extras", extra, "; ".join(reasons), "warning", f"pip install -U 'dmoerm[{extra}]'")
        else:
            yield Finding("extras", extra, ", ".join(f"{name} {installed}" for name, installed in found.items()))


def _requirements() -> Iterator[tuple[str, str, str | None]]:
    """(package, lowest version or "", extra or None) of every requirement of ours."""
    for line in importlib.metadata.requires("dmoerm") or []:
        requirement, _, marker = line.partition(";")
        name = re.match(r"[\w.-]+", requirement.strip())
        floor = re.search(r">=\s*([\d.]+)", requirement)
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", marker)
        assert name is not None
        yield name[0], floor[1] if floor else "", extra[1] if extra else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    """The release of a version: 2.11.0 and 2.11 alike, local and pre-release parts left out."""
    match = re.match(r"\d+(\.\d+)*", text)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


# --- devices ------------------------------------------------------------------------------------------------------------------------


def _devices() -> Iterator[Finding]:
    flags = _cpu_flags()
    names = [label for flag, label in CPU_FLAGS.items() if flag in flags]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("devices", "cpu", f"{cores} of {os.cpu_count()} cores usable; {', '.join(names) or 'no flags known'}")
    fast = {"avx512_bf16", "amx_bf16", "bf16"} & set(flags)
    yield Finding("devices", "bf16 on the cpu", "in hardware" if fast else "emulated, so training on it runs in float32")
    try:
        import torch
    except Exception as error:  # a broken installation raises whatever it likes, and the report must come out all the same
        yield Finding("devices", "torch", f"cannot be imported ({type(error).__name__}: {error})", "fault", "pip install 'torch>=2.11'")
        return
    threads = torch.get_num_threads()
    note = f"{threads} (OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')})"
    if threads > cores:
        yield Finding("devices", "threads", note, "warning", f"more than usable cores, which is slower: export OMP_NUM_THREADS={cores}")
    else:
        yield Finding("devices", "threads", note)
    if not torch.cuda.is_available():
        built = torch.version.cuda
        yield Finding("devices", "cuda", f"none usable; this torch is built for {'CUDA ' + built if built else 'the CPU alone'}", "note")
    else:
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            bf16 = "bf16" if properties.major >= 8 else "no bf16"
            value = (
                f"{properties.name}, {_free(index)} of {_gib(properties.total_memory)} free, {bf16}, torch for CUDA {torch.version.cuda}"
            )
            yield Finding("devices", f"cuda:{index}", value)
    if sys.platform == "darwin":
        yield Finding("devices", "mps", "usable with --device mps" if torch.backends.mps.is_available() else "not usable")


def _free(index: int) -> str:
    import torch

    try:
        return _gib(torch.cuda.mem_get_info(index)[0])
    except RuntimeError:  # another process has it for itself
        return "unknown"


def _cpu_flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return set()
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return set(match[1].split()) if match else set()


# --- machine and weights ------------------------------------------------------------------------------------------------------------


def _machine() -> Iterator[Finding]:
    available, total = _memory()
    if total is not None:
        value = f"{_gib(available)} of {_gib(total)} available" if available is not None else _gib(total)
        yield Finding("machine", "memory", value)
    disk = shutil.disk_usage(Path.cwd())
    if disk.free < 2**30:
        yield Finding(
            "machine", "disk here", f"{_gib(disk.free)} free", "warning", "make room: a save that runs out of space keeps nothing"
        )
    else:
        yield Finding("machine", "disk here", f"{_gib(disk.free)} free")
    offline = os.environ.get("HF_HUB_OFFLINE", "")
    on = offline.upper() in {"1", "ON", "YES", "TRUE"}
    yield Finding(
        "machine", "HF_HUB_OFFLINE", f"{offline or 'not set'}: the Hub is {'never asked' if on else 'asked for what is not cached'}"
    )


def _memory() -> tuple[int | None, int | None]:
    """(available, total) in bytes: what the container or else the machine allows; None where the system does not say."""
    sizes = {}
    info = Path("/proc/meminfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            sizes[name] = int(value.split()[0]) * 1024
    total, available = sizes.get("MemTotal"), sizes.get("MemAvailable")
    if total is None and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    try:
        allowed, taken = int(limit.read_text()), int(used.read_text())
    except (OSError, ValueError):  # no container, or no limit ("max")
        return available, total
    if total is not None and allowed < total:
        return min(allowed - taken, available or allowed), allowed
    return available, total


def _weights() -> Iterator[Finding]:
    from dmoerm.modeling.embedded import EMBEDDED_INSTALL, EMBEDDED_NAME, EMBEDDED_SHA256, embedded_weights

    path = embedded_weights()
    if path is None:
        yield Finding("weights", "embedded MiniLM", f"not installed; {EMBEDDED_NAME} then comes from the Hub", "note", EMBEDDED_INSTALL)
        return
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != EMBEDDED_SHA256:
        advice = f"{EMBEDDED_INSTALL} --force-reinstall"
        yield Finding("weights", "embedded MiniLM", f"{path}: SHA-256 is {digest}, expected {EMBEDDED_SHA256}", "fault", advice)
    else:
        yield Finding("weights", "embedded MiniLM", "there, SHA-256 is that of the published file")


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"

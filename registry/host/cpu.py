"""The CPU of this machine: its model, and the instruction set that decides how int8 is added."""

import platform
from dataclasses import dataclass
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
# Linux's flags of x86 and our names for them, the newest first. VNNI adds int8 products in 32 bits; without it they are
# added in pairs in 16 bits (docs/adr/0025).
_SETS = {
    "avx512_vnni": "avx512-vnni",
    "avx_vnni": "avx-vnni",
    "avx512f": "avx512",
    "avx2": "avx2",
    "avx": "avx",
    "sse4_2": "sse4.2",
}
_X86 = ("x86_64", "amd64")


@dataclass(frozen=True)
class Cpu:
    """A CPU's model, and its widest instruction set for a network: like "avx2", or the architecture's name."""

    model: str
    instruction_set: str

    @property
    def adds_int8_exactly(self) -> bool:
        """Whether int8 products are added in 32 bits: x86 with VNNI, or another architecture."""
        return "vnni" in self.instruction_set or not any(
            self.instruction_set in names for names in (_SETS.values(), _X86)
        )


def read_cpu() -> Cpu:
    """Describe this machine's CPU by /proc/cpuinfo; where there is none, by what Python knows of it."""
    architecture = platform.machine().lower()
    try:
        text = CPU_INFO.read_text(encoding="utf-8")
    except OSError:
        text = ""
    lines = dict(line.split(":", 1) for line in reversed(text.splitlines()) if ":" in line)
    known = {name.strip(): value.strip() for name, value in lines.items()}
    model = known.get("model name") or platform.processor() or architecture
    if architecture not in _X86:
        return Cpu(model, architecture)
    flags = set(known.get("flags", "").split())
    return Cpu(model, next((name for flag, name in _SETS.items() if flag in flags), architecture))

"""What a causal student learns of a bidirectional, and of a causal teacher: python -m benchmarks.causal_teacher

Two chunks of one number each, jointly Gaussian. Writes docs/images/causal_teacher.png.
"""

from __future__ import annotations

from pathlib import Path

from tests.chain import Chain, Joint, covariance
from tests.test_causal_teachers import fitted, values

OUT = Path(__file__).parents[1] / "docs" / "images" / "causal_teacher.png"
STEPS, SAMPLES = 512, 1 << 15
RHOS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95)


def deviations(rho: float, causal: bool) -> tuple[float, float]:
    """Of the two chunks that the fitted student makes after each other; 1 and 1 of the data."""
    teacher = Chain(rho, std=(1 - rho**2) ** 0.5) if causal else Joint(covariance(rho))
    first, read, std = values(fitted(teacher, STEPS, SAMPLES))
    return abs(first), ((read * first) ** 2 + std**2) ** 0.5


def main() -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.2))
    for causal, colour in ((True, "tab:blue"), (False, "tab:red")):
        found = [deviations(rho, causal) for rho in RHOS]
        name = "causal teacher" if causal else "bidirectional teacher"
        print(name, *(f"ρ = {rho:g}: {a:.3f}, {b:.3f}" for rho, (a, b) in zip(RHOS, found, strict=True)), sep="\n  ")
        for k, style in enumerate(("-o", "--s")):
            axes.plot(RHOS, [pair[k] for pair in found], style, color=colour, label=f"{name}, chunk {k + 1}")
    axes.axhline(1, color="0.7", linewidth=1, zorder=0)
    axes.set(xlabel="correlation of two chunks, ρ", ylabel="standard deviation, 1 of the data", ylim=(0.6, 1.05))
    axes.legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(OUT, dpi=150)


if __name__ == "__main__":
    main()

"""BibTeX, once a paper."""

from __future__ import annotations


def _arxiv(key: str, title: str, author: str, year: int, number: str) -> str:
    return (
        f"@article{{{key},\n  title = {{{title}}},\n  author = {{{author}}},\n"
        f"  journal = {{arXiv preprint arXiv:{number}}},\n  year = {{{year}}}\n}}"
    )


ANYFLOW = _arxiv(
    "gu2026anyflow",
    "AnyFlow: Any-Step Video Diffusion Model with On-Policy Flow Map Distillation",
    "Gu, Yuchao and Fang, Guian and others",
    2026,
    "2605.13724",
)
FLOW_MATCHING = _arxiv(
    "lipman2022flow",
    "Flow Matching for Generative Modeling",
    "Lipman, Yaron and Chen, Ricky T. Q. and Ben-Hamu, Heli and Nickel, Maximilian and Le, Matt",
    2022,
    "2210.02747",
)
MEANFLOW = _arxiv(
    "geng2025mean",
    "Mean Flows for One-step Generative Modeling",
    "Geng, Zhengyang and Deng, Mingyang and Bai, Xingjian and Kolter, J. Zico and He, Kaiming",
    2025,
    "2505.13447",
)
DMD = _arxiv(
    "yin2023onestep",
    "One-step Diffusion with Distribution Matching Distillation",
    "Yin, Tianwei and Gharbi, Micha{\\\"e}l and Zhang, Richard and Shechtman, Eli and Durand, Fr{\\'e}do and "
    "Freeman, William T. and Park, Taesung",
    2023,
    "2311.18828",
)
WAN = _arxiv(
    "wan2025wan",
    "Wan: Open and Advanced Large-Scale Video Generative Models",
    "{Team Wan}",
    2025,
    "2503.20314",
)
FAR = _arxiv(
    "gu2025long",
    "Long-Context Autoregressive Video Modeling with Next-Frame Prediction",
    "Gu, Yuchao and Mao, Weijia and Shou, Mike Zheng",
    2025,
    "2503.19325",
)

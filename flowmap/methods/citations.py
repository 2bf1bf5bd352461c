"""BibTeX, once a paper."""

from __future__ import annotations


def arxiv(key: str, title: str, author: str, year: int, number: str) -> str:
    """An entry for a preprint."""
    return (
        f"@article{{{key},\n  title = {{{title}}},\n  author = {{{author}}},\n"
        f"  journal = {{arXiv preprint arXiv:{number}}},\n  year = {{{year}}}\n}}"
    )


ANYFLOW = arxiv(
    "gu2026anyflow",
    "AnyFlow: Any-Step Video Diffusion Model with On-Policy Flow Map Distillation",
    "Gu, Yuchao and Fang, Guian and others",
    2026,
    "2605.13724",
)
FLOW_MATCHING = arxiv(
    "lipman2022flow",
    "Flow Matching for Generative Modeling",
    "Lipman, Yaron and Chen, Ricky T. Q. and Ben-Hamu, Heli and Nickel, Maximilian and Le, Matt",
    2022,
    "2210.02747",
)
MEANFLOW = arxiv(
    "geng2025mean",
    "Mean Flows for One-step Generative Modeling",
    "Geng, Zhengyang and Deng, Mingyang and Bai, Xingjian and Kolter, J. Zico and He, Kaiming",
    2025,
    "2505.13447",
)
IMPROVED_MEANFLOW = arxiv(
    "geng2025improved",
    "Improved Mean Flows: On the Challenges of Fastforward Generative Models",
    "Geng, Zhengyang and Lu, Yiyang and Wu, Zongze and Shechtman, Eli and Kolter, J. Zico and He, Kaiming",
    2025,
    "2512.02012",
)
DMD = arxiv(
    "yin2023onestep",
    "One-step Diffusion with Distribution Matching Distillation",
    "Yin, Tianwei and Gharbi, Micha{\\\"e}l and Zhang, Richard and Shechtman, Eli and Durand, Fr{\\'e}do and "
    "Freeman, William T. and Park, Taesung",
    2023,
    "2311.18828",
)
WAN = arxiv(
    "wan2025wan",
    "Wan: Open and Advanced Large-Scale Video Generative Models",
    "{Team Wan}",
    2025,
    "2503.20314",
)
FAR = arxiv(
    "gu2025long",
    "Long-Context Autoregressive Video Modeling with Next-Frame Prediction",
    "Gu, Yuchao and Mao, Weijia and Shou, Mike Zheng",
    2025,
    "2503.19325",
)
SELF_GRADIENT_FORCING = arxiv(
    "zhuang2026self",
    "Self Gradient Forcing: Native Long Video Extrapolation",
    "Zhuang, Junhao and Zhang, Shiyi and Bian, Yuxuan and Li, Yaowei and Luo, Yawen and Liu, Yijun and "
    "Jin, Weiyang and Zhang, Songchun and He, Xianglong and Zhang, Xuying and Li, Haoran and Huang, Haoyang and "
    "Xue, Zeyue and Duan, Nan",
    2026,
    "2607.20368",
)

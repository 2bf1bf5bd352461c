"""BibTeX, once a paper."""

from __future__ import annotations

from flowmap.methods.citations import arxiv

CONSISTENCY = arxiv(
    "song2023consistency",
    "Consistency Models",
    "Song, Yang and Dhariwal, Prafulla and Chen, Mark and Sutskever, Ilya",
    2023,
    "2303.01469",
)
IMPROVED = arxiv(
    "song2023improved",
    "Improved Techniques for Training Consistency Models",
    "Song, Yang and Dhariwal, Prafulla",
    2023,
    "2310.14189",
)
LCM = arxiv(
    "luo2023latent",
    "Latent Consistency Models: Synthesizing High-Resolution Images with Few-Step Inference",
    "Luo, Simian and Tan, Yiqin and Huang, Longbo and Li, Jian and Zhao, Hang",
    2023,
    "2310.04378",
)
SCM = arxiv(
    "lu2024simplifying",
    "Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models",
    "Lu, Cheng and Song, Yang",
    2024,
    "2410.11081",
)
RCM = arxiv(
    "zheng2025large",
    "Large Scale Diffusion Distillation via Score-Regularized Continuous-Time Consistency",
    "Zheng, Kaiwen and Wang, Yuji and Ma, Qianli and Chen, Huayu and Zhang, Jintao and Balaji, Yogesh and "
    "Chen, Jianfei and Liu, Ming-Yu and Zhu, Jun and Zhang, Qinsheng",
    2025,
    "2510.08431",
)
DMD2 = arxiv(
    "yin2024improved",
    "Improved Distribution Matching Distillation for Fast Image Synthesis",
    'Yin, Tianwei and Gharbi, Micha{\\"e}l and Park, Taesung and Zhang, Richard and Shechtman, Eli and '
    "Durand, Fr{\\'e}do and Freeman, William T.",
    2024,
    "2405.14867",
)
SELF_FORCING = arxiv(
    "huang2025self",
    "Self Forcing: Bridging the Train-Test Gap in Autoregressive Video Diffusion",
    "Huang, Xun and Li, Zhengqi and He, Guande and Zhou, Mingyuan and Shechtman, Eli",
    2025,
    "2506.08009",
)
CAUSVID = arxiv(
    "yin2024slow",
    "From Slow Bidirectional to Fast Autoregressive Video Diffusion Models",
    "Yin, Tianwei and Zhang, Qiang and Zhang, Richard and Freeman, William T. and Durand, Fr{\\'e}do and "
    "Shechtman, Eli and Huang, Xun",
    2024,
    "2412.07772",
)
SHORTCUT = arxiv(
    "frans2024one",
    "One Step Diffusion via Shortcut Models",
    "Frans, Kevin and Hafner, Danijar and Levine, Sergey and Abbeel, Pieter",
    2024,
    "2410.12557",
)
AYF = arxiv(
    "sabour2025align",
    "Align Your Flow: Scaling Continuous-Time Flow Map Distillation",
    "Sabour, Amirmojtaba and Fidler, Sanja and Kreis, Karsten",
    2025,
    "2506.14603",
)
FLOW_MAP_MATCHING = arxiv(
    "boffi2024flow",
    "Flow Map Matching with Stochastic Interpolants: A Mathematical Framework for Consistency Models",
    "Boffi, Nicholas M. and Albergo, Michael S. and Vanden-Eijnden, Eric",
    2024,
    "2406.07507",
)
SELF_DISTILLATION = arxiv(
    "boffi2025how",
    "How to Build a Consistency Model: Learning Flow Maps via Self-Distillation",
    "Boffi, Nicholas M. and Albergo, Michael S. and Vanden-Eijnden, Eric",
    2025,
    "2505.18825",
)
TVM = arxiv(
    "zhou2025terminal",
    "Terminal Velocity Matching",
    "Zhou, Linqi and Parger, Mathias and Haque, Ayaan and Song, Jiaming",
    2025,
    "2511.19797",
)
APT = arxiv(
    "lin2025diffusion",
    "Diffusion Adversarial Post-Training for One-Step Video Generation",
    "Lin, Shanchuan and Xia, Xin and Ren, Yuxi and Yang, Ceyuan and Xiao, Xuefeng and Jiang, Lu",
    2025,
    "2501.08316",
)
AAPT = arxiv(
    "lin2025autoregressive",
    "Autoregressive Adversarial Post-Training for Real-Time Interactive Video Generation",
    "Lin, Shanchuan and Yang, Ceyuan and He, Hao and Jiang, Jianwen and Ren, Yuxi and Xia, Xin and Zhao, Yang and "
    "Xiao, Xuefeng and Jiang, Lu",
    2025,
    "2506.09350",
)
R3GAN = arxiv(
    "huang2025gan",
    "The GAN is dead; long live the GAN! A Modern GAN Baseline",
    "Huang, Yiwen and Gokaslan, Aaron and Kuleshov, Volodymyr and Tompkin, James",
    2025,
    "2501.05441",
)
PHASED_DMD = arxiv(
    "fan2025phased",
    "Phased DMD: Few-step Distribution Matching Distillation via Score Matching within Subintervals",
    "Fan, Xiangyu and Qiu, Zesong and Wu, Zhuguanyu and Wang, Fanzhou and Lin, Zhiqian and Ren, Tianxiang and "
    "Lin, Dahua and Gong, Ruihao and Yang, Lei",
    2025,
    "2510.27684",
)
PDD = arxiv(
    "shaul2026parallel",
    "Parallel Decoding Distillation for Fast Image and Video Generation",
    "Shaul, Neta and Liu, Chao and Vahdat, Arash and Berner, Julius",
    2026,
    "2607.26004",
)
DIFFUSION_NFT = arxiv(
    "zheng2025diffusionnft",
    "DiffusionNFT: Online Diffusion Reinforcement with Forward Process",
    "Zheng, Kaiwen and Chen, Huayu and Ye, Haotian and Wang, Haoxiang and Zhang, Qinsheng and Jiang, Kai and "
    "Su, Hang and Ermon, Stefano and Zhu, Jun and Liu, Ming-Yu",
    2025,
    "2509.16117",
)
MEANFLOW_NFT = arxiv(
    "huang2026meanflownft",
    "MeanFlowNFT: Bringing Forward-Process RL to Average-Velocity Generators",
    "Huang, Yushi and Zhou, Xiangxin and Zhang, Jun and Bo, Liefeng and Pang, Tianyu",
    2026,
    "2607.15273",
)
MFA = arxiv(
    "tang2026meanflowadvantage",
    "MeanFlowAdvantage: Stable Reward Fine-Tuning for Few-Step Average-Velocity Generators",
    "Tang, Haocheng and Xie, Tianchi and Lin, Xingqiao",
    2026,
    "2609.37670",
)

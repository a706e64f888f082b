# ruff: noqa: F401 - this is where they are imported from
"""Every command's settings, as frozen dataclasses.

This package imports nothing heavy, so that ``contentmotion COMMAND --help`` answers at once. A field's documentation
is its line under ``Attributes:``, which is the flag's help. Field names are diffusers' words.
"""

from contentmotion.config.blocks import (
    AutoencoderSizes,
    ContentEvaluation,
    ContentSizes,
    ImageVAESizes,
    LoraSettings,
    MotionSizes,
    PerceptualLoss,
    ScaleSettings,
    ScheduledEvaluation,
    VideoSizes,
)
from contentmotion.config.common import SHIPPED_MODEL, SHIPPED_STUDENT, parse_bucket
from contentmotion.config.data import (
    CONDITION_NAMES,
    MAP_NAMES,
    CaptionConfig,
    ClipConfig,
    ConditionConfig,
    CutConfig,
    EncodeConfig,
    FolderConfig,
    InspectConfig,
)
from contentmotion.config.distill import DistillConfig, MethodSettings
from contentmotion.config.train import (
    ScoredTrainConfig,
    TrainAutoencoderConfig,
    TrainConfig,
    TrainContentConfig,
    TrainDenoiserConfig,
    TrainMotionConfig,
    TrainPipelineConfig,
    TrainVAEConfig,
    TrainVideoConfig,
)
from contentmotion.config.use import (
    BenchmarkConfig,
    DemoConfig,
    EvaluateConfig,
    ExportConfig,
    GenerateConfig,
    InfoConfig,
    PushConfig,
    ReconstructConfig,
    ReportConfig,
    SamplingConfig,
)

"""Valid names of artifacts and staged files.

A file with another name is neither read nor removed.
"""

import re

CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
OUTPUTS = "output"
OUTPUT_RECORD = "output.json"
"""The record in a stage's output folder, ``output/a<attempt>/``; written last and removed first."""
STAGING = ".mltrain-staging"
"""The staging folder beside artifacts on this machine."""
OUTBOX = "outbox"
"""The folder in which pictures wait for their upload."""
UNSETTLED = "unsettled"
"""A file in the folder of a run without its status.

``mltrain sync`` creates it before it delivers the run's records.
"""

CHECKPOINT = re.compile(r"step-\d{9}-a\d{2,6}", re.ASCII)
STAGED = re.compile(CHECKPOINT.pattern + r"(\.[0-9a-f]{8}\.tmp)?", re.ASCII)
PACKED = re.compile(
    r"(best_model|interrupt(?:ed)?_checkpoint|latest_checkpoint|checkpoint_(?:epoch|step)_(\d{1,9}))\.pth", re.ASCII
)
"""A packed checkpoint of a manager or an export, with its epoch or step."""
OUTPUT = re.compile(r"a\d{2,6}", re.ASCII)
RESTORED = re.compile(r"checkpoint-\d{1,9}(\.[0-9a-f]{8}\.tmp)?", re.ASCII)
"""A folder written for another trainer to resume from."""
CACHED = re.compile(r"[0-9a-f]{64}", re.ASCII)
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp", re.ASCII)
COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 ._+@,=()#~-]{0,199}", re.ASCII)
MODEL = re.compile(r"m-[0-9a-f]{32}", re.ASCII)
UPLOADING = ".artifact.uploading."

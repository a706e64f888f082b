#!/usr/bin/env bash
# A quarter of an hour of a GPU that reaches no network and has neither PyAV nor diffusers: what it is to show, prepared.
#
#   bash benchmarks/gpu.sh prepare CLIPS LPIPS   here: fills .gpu/ (not in git; it travels with the tree) with wheels, the
#                                                clips as pictures, which need no PyAV, and LPIPS's weights
#   OUT=results bash benchmarks/gpu.sh first     there, about 4 minutes: is it right, how fast is it
#   OUT=results bash benchmarks/gpu.sh second    there, at once, about 7 minutes: the shipped model and its student, from
#                                                nothing, in VAE, AE, CONTENT, MOTION, DC and DM steps
#
# OUT gets the JSON for benchmarks/results/, and the models. MORE is given to every training command, FEWER to benchmark.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} KEPT=${KEPT:-$PWD/.gpu} WORK=${WORK:-${TMPDIR:-/tmp}/contentmotion-gpu} OUT=${OUT:-outputs/gpu}
export PYTHONPATH=$WORK/site:$PWD/src PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

prepare() { # CLIPS LPIPS
    mkdir -p "$KEPT/wheels" "$KEPT/clips"
    grep -qx '/.gpu/' .git/info/exclude || echo '/.gpu/' >> .git/info/exclude
    "$PYTHON" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 -d "$KEPT/wheels" diffusers==0.42.1 jsonargparse==4.53.0 \
        docstring-parser==0.18.0 importlib-metadata==10.2.0 lazy-importer==0.1.0 jaxtyping wadler-lindig beartype
    cp "$2" "$KEPT/lpips.safetensors"
    "$PYTHON" - "$1" "$KEPT/clips" << 'PICTURES'
import sys
from pathlib import Path

from PIL import Image

from contentmotion.video.reader import read_video

source, kept = map(Path, sys.argv[1:])
for path in sorted(source.rglob("*.mp4")):
    first, *rest = map(Image.fromarray, read_video(path).frames)
    to = kept / path.relative_to(source).with_suffix(".webp")
    to.parent.mkdir(parents=True, exist_ok=True)
    first.save(to, save_all=True, append_images=rest, duration=125, lossless=True)
for path in source.glob("metadata.*"):
    (kept / path.name).write_text(path.read_text(encoding="utf-8").replace(".mp4", ".webp"), encoding="utf-8")
PICTURES
    du -sh "$KEPT"
}

install() {
    mkdir -p "$WORK/site" "$OUT"
    if ls "$KEPT"/wheels/*.whl > /dev/null 2>&1 && [ -z "$(ls "$WORK/site")" ]; then
        "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$WORK/site" \
            "$KEPT"/wheels/*.whl
    fi
}

first() {
    install
    # Without pyproject.toml, which names pytest's plugins.
    CONTENTMOTION_GPU=1 timeout 150 "$PYTHON" -m pytest -q -c /dev/null --rootdir . -p no:cacheprovider tests/test_gpu.py ||
        echo "the tests failed: what follows may be wrong"
    "$PYTHON" benchmarks/in_turn.py << COMMANDS
benchmark emoji emoji-lcm cmd-sd21-4 --repeats 7 --output_dir "$OUT/first" ${FEWER:-}
benchmark cmd-sd21 cmd-sana-4 cmd-klein-4 --output_dir "$OUT/systems" ${FEWER:-}
COMMANDS
    # Against others' systems in one run, and training steps beside CMD's Table 8.
    "$PYTHON" benchmarks/compare_systems.py cmd-sd21-4 modelscope ltx-2b-8 wan-1.3b-4 --training --dtype bf16 \
        --output_dir "$OUT/others" ${FEWER:-}
}

second() {
    install
    [ ! -f "$KEPT/lpips.safetensors" ] || export CONTENTMOTION_LPIPS=$KEPT/lpips.safetensors
    local clips=${CLIPS:-$KEPT/clips} to=$WORK/run few="--logging_steps 100 --validation_steps 0 ${MORE:-}"
    local parts="--vae $to/vae/vae --autoencoder $to/autoencoder/autoencoder"
    local recorded="" content="--config configs/emoji/content.yaml --latent_cache $to/cache --vae $to/vae/vae"
    content+=" --train_batch_size ${BATCH:-256}"
    if "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        recorded="train-content $content --max_train_steps 300 $few --scale.cuda_graphs true --output_dir $to/content-recorded"
    fi
    local teacher="--pretrained_model_name_or_path $OUT/teacher --latent_cache $to/cache"
    "$PYTHON" benchmarks/in_turn.py << COMMANDS
train-vae --config configs/emoji/vae.yaml --train_data_dir $clips --max_train_steps ${VAE:-3000} $few --output_dir $to/vae
train-autoencoder --config configs/emoji/autoencoder.yaml --train_data_dir $clips --vae $to/vae/vae --train_batch_size ${AE_BATCH:-64} --max_train_steps ${AE:-4000} $few ${AE_MORE:-} --output_dir $to/autoencoder
encode --config configs/emoji/encode.yaml --train_data_dir $clips $parts ${SIZE:-} --output_dir $to/cache
train-content $content --max_train_steps ${CONTENT:-8000} $few --output_dir $to/content
train-motion --config configs/emoji/motion.yaml --latent_cache $to/cache --pretrained_model_name_or_path $to/content/content --autoencoder $to/autoencoder/autoencoder --train_batch_size ${BATCH:-256} --max_train_steps ${MOTION:-8000} $few --output_dir $to/motion
export --pretrained_model_name_or_path $to/content/content --autoencoder $to/autoencoder/autoencoder --motion_transformer $to/motion/motion_transformer --output_dir $OUT/teacher
distill --config configs/emoji/distill-content.yaml $teacher --train_batch_size ${BATCH:-256} --max_train_steps ${DC:-1500} $few --output_dir $to/content-lcm
distill --config configs/emoji/distill-motion.yaml $teacher --train_batch_size ${BATCH:-256} --max_train_steps ${DM:-2000} $few --output_dir $to/motion-lcm
export --pretrained_model_name_or_path $to/content-lcm/content --autoencoder $to/autoencoder/autoencoder --motion_transformer $to/motion-lcm/motion_transformer --output_dir $OUT/student
generate "a crying cat" rocket "red heart" "birthday cake" --pretrained_model_name_or_path $OUT/student --formats gif --output_dir $OUT/samples
COMMANDS
    for stage in vae autoencoder content motion content-lcm motion-lcm; do
        cp "$to/$stage/metrics.jsonl" "$OUT/$stage.jsonl"
    done
    # Last, for it was never tried: seconds of a recorded step.
    if [ -n "$recorded" ]; then
        "$PYTHON" -m contentmotion $recorded
        cp "$to/content-recorded/metrics.jsonl" "$OUT/content-recorded.jsonl"
    fi
}

"$@"

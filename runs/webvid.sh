#!/usr/bin/env bash
# CMD text to video on WebVid-10M, from Stable Diffusion (CMD Tables 5-7).
#
#   DATA=~/webvid bash runs/webvid.sh                        # SD 2.1-base, 512x1024, one GPU
#   DATA=~/webvid RECIPE=webvid-sd15 bash runs/webvid.sh     # SD 1.5, 512x512
#   DATA=~/webvid GPUS=8 bash runs/webvid.sh                 # one node of 8 GPUs
#   DATA=/data/webvid bash runs/webvid_slurm.sh              # a Slurm cluster
#   DATA=~/webvid MSRVTT=~/msrvtt UCF101=~/ucf101 UCF101_PROMPTS=prompts.json STAGES=finish bash runs/webvid.sh
#
# DATA holds the videos and metadata.csv (file_name, caption, split: train or validation). Stopped? Run it again: every
# stage goes on where it was. The sizes are the paper's and want GPUs of 80 GB; its batch sizes are kept, on few GPUs by
# gradient accumulation. The content and the motion model need only the cache, not each other: with several GPUs they
# train at the same time, half of the GPUs each. Stable Diffusion is fetched from the hub on first use; for a local copy
# change the names in the recipe's YAML files.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${DATA:?set DATA to the folder with the videos and metadata.csv}"
RECIPE="${RECIPE:-webvid-sd21}"
OUT="${OUT:-outputs/$RECIPE}"
STAGES="${STAGES:-autoencoder encode content motion finish}"
CLIP="${CLIP:-openai/clip-vit-base-patch32}" # for CLIPSIM
GPUS="${GPUS:-1}" # processes, on all nodes together
AUTOENCODER="$OUT/autoencoder/autoencoder"

# launch PROCESSES COMMAND...: the command in so many processes; LAUNCH says how, where torchrun alone is not enough.
launch() {
    local processes="$1"
    shift
    if [ -n "${LAUNCH:-}" ]; then
        $LAUNCH -m contentmotion "$@"
    elif [ "$processes" -gt 1 ]; then
        torchrun --standalone --nproc_per_node "$processes" -m contentmotion "$@"
    else
        contentmotion "$@"
    fi
}

# accumulate TIMES PROCESSES: the recipe's accumulation (of one process) shared out.
accumulate() { echo "--gradient_accumulation_steps $((($1 + $2 - 1) / $2))"; }

wants() { [[ " $STAGES " == *" $1 "* ]]; }

# shellcheck disable=SC2046 # accumulate prints two words
autoencoder() {
    launch "$GPUS" train-autoencoder --config "configs/$RECIPE/autoencoder.yaml" \
        --train_data_dir "$DATA" --output_dir "$OUT/autoencoder" $(accumulate 8 "$GPUS")
}

encode() {
    launch "$GPUS" encode --config "configs/$RECIPE/encode.yaml" \
        --train_data_dir "$DATA" --autoencoder "$AUTOENCODER" --output_dir "$OUT/cache"
}

# shellcheck disable=SC2046
content() {
    launch "$1" train-content --config "configs/$RECIPE/content.yaml" \
        --latent_cache "$OUT/cache" --output_dir "$OUT/content" $(accumulate 64 "$1")
}

# shellcheck disable=SC2046
motion() {
    launch "$1" train-motion --config "configs/$RECIPE/motion.yaml" \
        --latent_cache "$OUT/cache" --autoencoder "$AUTOENCODER" --output_dir "$OUT/motion" $(accumulate 32 "$1")
}

# At the same time: each on its half of this node's GPUs.
content_and_motion() {
    local half=$((GPUS / 2)) pid
    CUDA_VISIBLE_DEVICES=$(seq -s, 0 $((half - 1))) content "$half" &
    pid=$!
    CUDA_VISIBLE_DEVICES=$(seq -s, "$half" $((2 * half - 1))) motion "$half" || { wait "$pid"; exit 1; }
    wait "$pid"
}

finish() {
    [ -f "$OUT/pipeline/model_index.json" ] || contentmotion export \
        --pretrained_model_name_or_path "$OUT/content/content" --autoencoder "$AUTOENCODER" \
        --motion_transformer "$OUT/motion/motion_transformer" --output_dir "$OUT/pipeline"

    # CMD B.4: DDIM, 50 steps for the content frame, 100 for the motion, guidance 7.5; 5,000 validation videos.
    SAMPLING=(--pretrained_model_name_or_path "$OUT/pipeline"
        --num_inference_steps 50 --motion_num_inference_steps 100 --guidance_scale 7.5)

    # Needs the I3D network's weights: --i3d FILE, or the environment variable CONTENTMOTION_I3D.
    launch "$GPUS" evaluate "${SAMPLING[@]}" --data_dir "$DATA" --split validation --num_videos 5000 --clip "$CLIP" \
        --output_dir "$OUT/evaluate"
    # Zero-shot, where the data are (docs/data.md): MSR-VTT, and UCF-101 with prompts for its classes.
    [ -z "${MSRVTT:-}" ] || launch "$GPUS" evaluate "${SAMPLING[@]}" --data_dir "$MSRVTT" --split test --clip "$CLIP" \
        --output_dir "$OUT/evaluate-msrvtt"
    [ -z "${UCF101:-}" ] || launch "$GPUS" evaluate "${SAMPLING[@]}" --data_dir "$UCF101" --preset ucf101-zero-shot \
        --class_prompts "${UCF101_PROMPTS:?set UCF101_PROMPTS to the file of prompts}" --output_dir "$OUT/evaluate-ucf101"

    contentmotion generate "A Teddy Bear skating in Times Square" "Waves rolling onto a beach at sunset" \
        "${SAMPLING[@]}" --output_dir "$OUT/samples"
}

if wants autoencoder; then autoencoder; fi
if wants encode; then encode; fi
if wants content && wants motion && [ "$GPUS" -gt 1 ] && [ -z "${LAUNCH:-}" ]; then
    content_and_motion
else
    if wants content; then content "$GPUS"; fi
    if wants motion; then motion "$GPUS"; fi
fi
if wants finish; then finish; fi

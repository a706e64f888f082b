#!/usr/bin/env bash
# CMD text to video on WebVid-10M, from Stable Diffusion (CMD Tables 5-7).
#
#   DATA=~/webvid bash runs/webvid.sh                        # SD 2.1-base, 512x1024
#   DATA=~/webvid RECIPE=webvid-sd15 bash runs/webvid.sh     # SD 1.5, 512x512
#
# DATA holds the videos and metadata.csv (file_name, caption, split: train or validation). Stopped? Run it again: every
# stage goes on where it was. The sizes are the paper's and want GPUs of 80 GB; its batch sizes are kept on one GPU by
# gradient accumulation. Stable Diffusion is fetched from the hub on first use; for a local copy change the names in the
# recipe's YAML files.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${DATA:?set DATA to the folder with the videos and metadata.csv}"
RECIPE="${RECIPE:-webvid-sd21}"
OUT="${OUT:-outputs/$RECIPE}"
AUTOENCODER="$OUT/autoencoder/autoencoder"

contentmotion train-autoencoder --config "configs/$RECIPE/autoencoder.yaml" \
    --train_data_dir "$DATA" --output_dir "$OUT/autoencoder"

contentmotion encode --config "configs/$RECIPE/encode.yaml" \
    --train_data_dir "$DATA" --autoencoder "$AUTOENCODER" --output_dir "$OUT/cache"

contentmotion train-content --config "configs/$RECIPE/content.yaml" \
    --cache_dir "$OUT/cache" --output_dir "$OUT/content"

contentmotion train-motion --config "configs/$RECIPE/motion.yaml" \
    --cache_dir "$OUT/cache" --autoencoder "$AUTOENCODER" --output_dir "$OUT/motion"

[ -f "$OUT/pipeline/model_index.json" ] || contentmotion export --pretrained_model_name_or_path "$OUT/content/content" \
    --autoencoder "$AUTOENCODER" --motion_transformer "$OUT/motion/motion_transformer" --output_dir "$OUT/pipeline"

# CMD B.4: DDIM, 50 steps for the content frame, 100 for the motion, guidance 7.5; 5,000 validation videos.
SAMPLING=(--pretrained_model_name_or_path "$OUT/pipeline"
    --num_inference_steps 50 --motion_num_inference_steps 100 --guidance_scale 7.5)

# Needs the I3D network's weights: --i3d FILE, or the environment variable CONTENTMOTION_I3D.
contentmotion evaluate "${SAMPLING[@]}" --data_dir "$DATA" --split validation --num_videos 5000 \
    --output_dir "$OUT/evaluate"

contentmotion generate "A Teddy Bear skating in Times Square" "Waves rolling onto a beach at sunset" \
    "${SAMPLING[@]}" --output_dir "$OUT/samples"
